"""Convolutional subsampling: two 3x3 convolutions of stride 2x2, then a projection (100 -> 25 frames/s)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

TIME_REDUCTION = 4


class StridedConv(nn.Module):
  """3x3 convolution, stride 2x2, one zero on each border: output t, f reads inputs 2t-1..2t+1, 2f-1..2f+1.

  Written as one matmul over patches: XLA's CPU back end runs the gradients of strided convolutions far slower.
  """

  features: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, F, C] -> [B, ceil(T / 2), ceil(F / 2), features]."""
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.he_normal(in_axis=(0, 1, 2)),
        ("conv_height", "conv_width", "conv_in", "conv_out"),
      ),
      (3, 3, x.shape[-1], self.features),
    )
    bias = self.param(
      "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)), (self.features,)
    )
    num_frames, num_bins = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
      x[:, i : i + 2 * num_frames - 1 : 2, j : j + 2 * num_bins - 1 : 2]
      for i in range(3)
      for j in range(3)
    ]
    patches = jnp.concatenate(taps, axis=-1)
    return patches @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)


class Subsampling(nn.Module):
  """Log-mel features -> frames four times as long (Conformer, arXiv:2005.08100 §2; USM, arXiv:2303.01037 §2)."""

  channels: tuple[int, int]
  model_dim: int
  dtype: str

  @nn.compact
  def __call__(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features [B, T, F], mask bool [B, T] -> (frames [B, ceil(T / 4), D], mask bool [B, ceil(T / 4)])."""
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
