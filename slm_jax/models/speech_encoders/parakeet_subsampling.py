"""Fast Conformer's subsampling (arXiv:2305.05084 §3.1): depthwise-separable strided convolutions."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.subsampling import StridedConv

_init = nn.initializers.lecun_normal()


class StridedDepthwiseConv(nn.Module):
  """3x3 convolution, one filter per channel, stride 2x2, a zero on each border."""

  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, F, C] -> [B, ceil(T / 2), ceil(F / 2), C]; output t, f is centred on 2t, 2f."""
    channels = x.shape[-1]
    kernel_init = nn.initializers.variance_scaling(
      2.0, "fan_in", "normal", in_axis=(0, 1), out_axis=(), batch_axis=2
    )
    axes = ("conv_height", "conv_width", "conv_out")
    kernel_init = nn.with_logical_partitioning(kernel_init, axes)
    kernel = jnp.asarray(self.param("kernel", kernel_init, (3, 3, channels)), self.dtype)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:])
    bias = jnp.asarray(self.param("bias", bias_init, (channels,)), self.dtype)
    height, width = (-(-size // 2) for size in x.shape[1:3])
    odd = [(2, size % 2) for size in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *odd, (0, 0)))
    # Even and odd frames and bins apart, so that every tap is a plain slice: with two zeros in
    # front, output t reads the odd one of pair t, and both of pair t + 1.
    x = x.reshape(x.shape[0], height + 1, 2, width + 1, 2, channels)
    taps = ((1, 0), (0, 1), (1, 1))  # (even or odd, pair)
    y = bias
    for i, (row, down) in enumerate(taps):
      for j, (column, right) in enumerate(taps):
        y = y + x[:, down : down + height, row, right : right + width, column] * kernel[i, j]
    return y


class DepthwiseSubsampling(nn.Module):
  """Halves frames and bins `halvings` times; then a projection of all bins and channels to D.

  The first convolution is a full one, with ReLU; each further one is depthwise, then pointwise, with
  ReLU.
  """

  halvings: int
  channels: int
  model_dim: int
  dtype: str

  @nn.compact
  def __call__(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features [B, T', F], mask bool [B, T'] -> [B, T, D], mask bool [B, T].

    T = ceil(T' / 2^halvings).
    """
    x = features.astype(self.dtype)[..., None]
    for index in range(self.halvings):
      # Zeroed before each convolution, so that a real frame never reads what padding holds.
      x = jnp.where(mask[..., None, None], x, 0)
      if index == 0:
        x = StridedConv(self.channels, self.dtype, name="conv_0")(x)
      else:
        x = StridedDepthwiseConv(self.dtype, name=f"depthwise_{index}")(x)
        axes, name = ("conv_in", "conv_out"), f"pointwise_{index}"
        x = Dense(self.channels, axes, self.dtype, _init, use_bias=True, name=name)(x)
      x = nn.relu(x)
      mask = mask[:, ::2]  # frame t is centred on 2t, hence real exactly when that is
    # Published weights count channels first, bins last.
    x = jnp.swapaxes(x, 2, 3).reshape(*x.shape[:2], -1)
    dense = Dense(
      self.model_dim, ("mel", "embed"), self.dtype, _init, use_bias=True, name="projection"
    )
    return dense(x), mask
