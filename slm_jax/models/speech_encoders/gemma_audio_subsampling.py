"""Subsampling of Gemma's audio towers: two convolutions of stride 2, each with a norm and ReLU.

Both zero what lies past an example's end before each convolution. Gemma 4's are centred and have layer
norms over the channels. Gemma 3n's read ahead, and have group norms whose statistics grow frame by
frame: of everything up to a frame, in all bins and channels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoders.gemma_audio_config import (
  Gemma3nAudioConfig,
  Gemma4AudioConfig,
)
from slm_jax.models.speech_encoders.gemma_audio_linear import init
from slm_jax.models.speech_encoders.row_by_row import one_by_one_on_cpu

# Of a convolution's three taps: which of a pair of neighbours it reads, and of which pair, relative
# to that of the output. Output i of a centred one reads 2i - 1 … 2i + 1, of one ahead 2i … 2i + 2.
_CENTRED = ((1, -1), (0, 0), (1, 0))
_AHEAD = ((0, 0), (1, 0), (0, 1))


def _shifted(x: jax.Array, axis: int, shift: int) -> jax.Array:
  """x[i + shift] at i on an axis, a zero where there is none; shift is -1, 0 or 1."""
  if shift == 0:
    return x
  size = x.shape[axis]
  border = [(0, 0)] * x.ndim
  border[axis] = (1, 0) if shift < 0 else (0, 1)
  start = max(0, shift)
  return jax.lax.slice_in_dim(jnp.pad(x, border), start, start + size, axis=axis)


def strided_conv(x: jax.Array, kernel: jax.Array, *, ahead: bool) -> jax.Array:
  """3x3 convolution of stride 2, zeros past the ends.

  Args:
    x: [B, T, F, C].
    kernel: [3, 3, C, features].
    ahead: frame t reads frames 2t … 2t + 2, else 2t - 1 … 2t + 1; bins are always centred.

  Returns:
    [B, ceil(T / 2), ceil(F / 2), features].
  """
  batch, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
  x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels)
  rows = _AHEAD if ahead else _CENTRED
  phase = {(row, column): x[:, :, row, :, column] for row in (0, 1) for column in (0, 1)}
  if channels == 1:
    taps = [
      _shifted(_shifted(phase[row, column], 1, down), 2, right)
      for row, down in rows
      for column, right in _CENTRED
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(9, -1)
  # Products of each phase with all taps that read it, then shifts of the few channels that come out.
  total = jnp.zeros((), x.dtype)
  for at, values in phase.items():
    taps = [
      (i, j)
      for i, (row, _) in enumerate(rows)
      for j, (column, _) in enumerate(_CENTRED)
      if (row, column) == at
    ]
    product = values @ jnp.concatenate([kernel[i, j] for i, j in taps], axis=-1)
    for (i, j), y in zip(taps, jnp.split(product, len(taps), axis=-1), strict=True):
      total = total + _shifted(_shifted(y, 1, rows[i][1]), 2, _CENTRED[j][1])
  return total


def layer_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """x [..., C] with mean 0 and variance 1 over the channels, times scale [C]; in fp32."""
  x = x.astype(jnp.float32)
  centred = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + epsilon) * scale


def cumulative_group_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """x [B, T, F, C] less its mean, over its deviation, times scale [C]; in fp32.

  Mean and variance at frame t are over frames 0 … t, all bins and channels; a frame's deviation is
  from the mean at that frame.
  """
  x = x.astype(jnp.float32)
  count = x.shape[2] * x.shape[3] * jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)
  mean = jnp.cumsum(x.sum(axis=(2, 3)), axis=1) / count
  centred = x - mean[..., None, None]
  variance = jnp.cumsum(jnp.square(centred).sum(axis=(2, 3)), axis=1) / count
  return centred * jax.lax.rsqrt(variance + epsilon)[..., None, None] * scale


class Subsampling(nn.Module):
  """From 100 to 25 frames/s, and to the model width."""

  config: Gemma3nAudioConfig | Gemma4AudioConfig

  @nn.compact
  def __call__(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features [B, T', F], mask bool [B, T'] -> frames [B, ceil(T' / 4), D], mask."""
    cfg, channels = self.config, (1, *self.config.subsampling_channels)
    layers = [self._layer(i, channels[i], channels[i + 1]) for i in range(2)]

    def convolutions(x: jax.Array, mask: jax.Array) -> jax.Array:
      x = x[..., None]
      for kernel, scale in layers:
        x = jnp.where(mask[..., None, None], x, 0)
        if isinstance(cfg, Gemma3nAudioConfig):
          y = strided_conv(x, kernel, ahead=True)
          y = cumulative_group_norm(y, scale, cfg.group_norm_epsilon)
        else:
          y = layer_norm(strided_conv(x, kernel, ahead=False), scale, cfg.conv_norm_epsilon)
        x = nn.relu(y).astype(cfg.dtype)
        mask = mask[:, ::2]  # frame t begins with 2t, hence real exactly when that is
      return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])

    x = one_by_one_on_cpu(convolutions, features.astype(cfg.dtype), mask)
    x = Dense(cfg.model_dim, ("mel", "embed"), cfg.dtype, init, name="projection")(x)
    return x, mask[:, ::4]

  def _layer(self, index: int, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Kernel in the type of computation and the norm's scale in fp32."""
    axes = ("conv_height", "conv_width", "conv_in", "conv_out")
    kernel_init = nn.with_logical_partitioning(nn.initializers.he_normal(), axes)
    kernel = self.param(f"kernel_{index}", kernel_init, (3, 3, inputs, outputs))
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, axes[-1:])
    scale = self.param(f"scale_{index}", scale_init, (outputs,))
    return jnp.asarray(kernel, self.config.dtype), jnp.asarray(scale, jnp.float32)
