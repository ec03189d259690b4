"""Convolutional subsampling from 100 to 25 frames/s."""

import jax
import jax.numpy as jnp
from flax import linen as nn

TIME_REDUCTION = 4


def patches(x: jax.Array) -> jax.Array:
  """The 3x3 neighbourhoods of every second frame and bin: [B, T, F, C] -> [B, T', F', 9 * C].

  Cut from the four phases (even or odd frame, even or odd bin) with plain slices; strided slices,
  and the gradients of strided convolutions, are slow on a CPU.
  """
  height, width = (-(-size // 2) for size in x.shape[1:3])
  odd = [(2, size % 2) for size in x.shape[1:3]]
  x = jnp.pad(x, ((0, 0), *odd, (0, 0)))
  x = x.reshape(x.shape[0], height + 1, 2, width + 1, 2, x.shape[-1])
  # With two zeros in front, output t reads padded 2t + 1 .. 2t + 3: the odd phase at t, both
  # phases at t + 1.
  taps = ((1, 0), (0, 1), (1, 1))  # (phase, shift)
  return jnp.concatenate(
    [
      x[:, down : down + height, row, right : right + width, column]
      for row, down in taps
      for column, right in taps
    ],
    axis=-1,
  )


class StridedConv(nn.Module):
  """3x3 convolution, stride 2x2, a zero on each border: output t, f is centred on 2t, 2f."""

  features: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, F, C] -> [B, ceil(T / 2), ceil(F / 2), features]."""
    kernel_param = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.he_normal(),
        ("conv_height", "conv_width", "conv_in", "conv_out"),
      ),
      (3, 3, x.shape[-1], self.features),
    )
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
    bias = jnp.asarray(self.param("bias", bias_init, (self.features,)), self.dtype)
    kernel = jnp.asarray(kernel_param, self.dtype)
    if x.shape[-1] > 1:
      return patches(x) @ kernel.reshape(-1, self.features) + bias
    # One channel in: patches of nine numbers would cost more than they save, and x needs no
    # gradient.
    layout = ("NHWC", "HWIO", "NHWC")
    border = ((1, 1), (1, 1))
    y = jax.lax.conv_general_dilated(x, kernel, (2, 2), border, dimension_numbers=layout)
    return y + bias


class Subsampling(nn.Module):
  """Two strided convolutions with ReLU, then a projection to the model width.

  The form of Conformer (arXiv:2005.08100 §2), as in USM (arXiv:2303.01037 §2).
  """

  channels: tuple[int, int]
  model_dim: int
  dtype: str

  @nn.compact
  def __call__(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features [B, T, F], mask bool [B, T] -> frames [B, T', D], mask bool [B, T'].

    T' = ceil(T / 4), frames are 0 at padding.
    """
    x = features.astype(self.dtype)[..., None]
    for index, channels in enumerate(self.channels):
      # Zeroed before each convolution, so that a real frame never reads what padding holds.
      x = jnp.where(mask[..., None, None], x, 0)
      x = nn.relu(StridedConv(channels, self.dtype, name=f"conv_{index}")(x))
      mask = mask[:, ::2]  # frame t is centred on 2t, hence real exactly when that is
    x = x.reshape(*x.shape[:2], -1)
    kernel_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("mel", "embed"))
    x = nn.Dense(
      self.model_dim,
      dtype=self.dtype,
      kernel_init=kernel_init,
      bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
      name="projection",
    )(x)
    return jnp.where(mask[..., None], x, 0), mask
