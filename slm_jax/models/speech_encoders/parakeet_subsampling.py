"""Fast Conformer's subsampling (arXiv:2305.05084 §3.1): depthwise-separable strided convolutions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.speech_encoders.row_by_row import Layer, Weights, one_by_one_on_cpu

_init = nn.initializers.lecun_normal()


def neighbourhoods(x: jax.Array) -> list[jax.Array]:
  """What a 3x3 convolution of stride 2 reads, tap by tap, row-wise; a zero on each border.

  Args:
    x: [B, T, F, C], T and F even.

  Returns:
    Nine arrays [B, T / 2, F / 2, C]; the fifth holds every second frame and bin, from the first on.
  """
  batch, height, width, channels = x.shape
  # Even and odd frames and bins apart: every tap is then a plain slice, shifted by one or not.
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)

  def taps(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    even, odd = (jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in (0, 1))
    border = [(0, 0)] * odd.ndim
    border[axis] = (1, 0)
    before = jax.lax.slice_in_dim(jnp.pad(odd, border), 0, odd.shape[axis], axis=axis)
    return before, even, odd

  return [column for row in taps(x, 1) for column in taps(row, 2)]


class DepthwiseSubsampling(nn.Module):
  """Halves frames and bins `halvings` times; then a projection of all bins and channels to D.

  The first convolution is a full one, with ReLU; each further one is depthwise, then pointwise, with
  ReLU. All have a zero on each border, so output t is centred on 2t.
  """

  halvings: int
  channels: int
  model_dim: int
  dtype: str

  @nn.compact
  def __call__(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features [B, T', F], mask bool [B, T'] -> [B, T, D], mask bool [B, T].

    T = ceil(T' / 2^halvings); F is a multiple of 2^halvings.
    """
    missing = -features.shape[1] % 2**self.halvings
    features = jnp.pad(features, ((0, 0), (0, missing), (0, 0)))
    mask = jnp.pad(mask, ((0, 0), (0, missing)))
    channels, window = self.channels, ("conv_height", "conv_width")
    first = self._layer("conv_0", (3, 3, 1, channels), (*window, "conv_in", "conv_out"), _init)
    further = []
    depthwise_init = nn.initializers.variance_scaling(
      2.0, "fan_in", "normal", in_axis=(0, 1), out_axis=(), batch_axis=2
    )
    for index in range(1, self.halvings):
      axes = (*window, "conv_out")
      depthwise = self._layer(f"depthwise_{index}", (3, 3, channels), axes, depthwise_init)
      axes = ("conv_in", "conv_out")
      pointwise = self._layer(f"pointwise_{index}", (channels, channels), axes, _init)
      further.append((depthwise, pointwise))

    def convolutions(features: jax.Array, mask: jax.Array) -> jax.Array:
      x = jnp.where(mask[..., None], features, 0)[..., None]
      x = jnp.concatenate(neighbourhoods(x), axis=-1)
      x = nn.relu(x @ first[0].reshape(9, channels) + first[1])
      for depthwise, (kernel, bias) in further:
        mask = mask[:, ::2]
        # Zeroed before each convolution, so that a real frame never reads what padding holds.
        taps = neighbourhoods(jnp.where(mask[..., None, None], x, 0))
        window = depthwise[0].reshape(9, channels)
        y = sum((tap * window[i] for i, tap in enumerate(taps)), depthwise[1])
        x = nn.relu(y @ kernel + bias)
      # Published weights count channels first, bins last.
      return jnp.swapaxes(x, 2, 3).reshape(*x.shape[:2], -1)

    x = one_by_one_on_cpu(convolutions, features.astype(self.dtype), mask)
    kernel, bias = self._layer("projection", (x.shape[-1], self.model_dim), ("mel", "embed"), _init)
    # Frame t is centred on feature 2^halvings * t, hence real exactly when that is.
    return x @ kernel + bias, mask[:, :: 2**self.halvings]

  def _layer(
    self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], kernel_init: Callable
  ) -> Weights:
    return Layer(shape, axes, kernel_init, self.dtype, name=name)()
