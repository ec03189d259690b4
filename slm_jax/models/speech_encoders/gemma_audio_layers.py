"""Conformer blocks of Gemma's audio towers, in USM's form (arXiv:2303.01037 §2).

Half-step FFN, local self-attention, causal depthwise convolution, half-step FFN, norm. Modules have
RMS norms before and, but for the convolution, behind them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.speech_encoders.gemma_audio_attention import LocalAttention
from slm_jax.models.speech_encoders.gemma_audio_config import GemmaAudioConfig
from slm_jax.models.speech_encoders.gemma_audio_linear import Linear, clip

_FFN_FACTOR = 4


def norm(
  config: GemmaAudioConfig, name: str, *, axis: str = "embed", epsilon: float = 1e-6
) -> nn.RMSNorm:
  """RMS norm over the last axis, whose logical name is `axis`."""
  scale_init = nn.with_logical_partitioning(nn.initializers.ones, (axis,))
  return nn.RMSNorm(epsilon=epsilon, dtype=config.dtype, scale_init=scale_init, name=name)


class FeedForward(nn.Module):
  """Norm, linear, swish, linear, norm."""

  config: GemmaAudioConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    cfg, width = self.config, x.shape[-1]
    y = norm(cfg, "norm")(clip(x, cfg))
    y = nn.swish(Linear(cfg, _FFN_FACTOR * width, ("embed", "mlp"), name="wi")(y))
    y = Linear(cfg, width, ("mlp", "embed"), name="wo")(y)
    return norm(cfg, "out_norm")(clip(y, cfg))


class CausalConv(nn.Module):
  """Depthwise convolution over time of a frame and those before it, as shifted products."""

  kernel_size: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    num_frames, width = x.shape[1:]
    kernel_init = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=0, out_axis=(), batch_axis=1
    )
    kernel_init = nn.with_logical_partitioning(kernel_init, ("conv_kernel", "mlp"))
    kernel = jnp.asarray(self.param("kernel", kernel_init, (self.kernel_size, width)), self.dtype)
    padded = jnp.pad(x, ((0, 0), (self.kernel_size - 1, 0), (0, 0)))
    y = padded[:, :num_frames] * kernel[0]
    for k in range(1, self.kernel_size):
      y = y + padded[:, k : k + num_frames] * kernel[k]
    return y


class ConvModule(nn.Module):
  """Norm, GLU, causal convolution, norm, swish, linear."""

  config: GemmaAudioConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    cfg, width = self.config, x.shape[-1]
    y = norm(cfg, "norm", epsilon=cfg.conv_norm_epsilon)(x)
    value, gate = jnp.split(Linear(cfg, 2 * width, ("embed", "mlp"), name="start")(y), 2, axis=-1)
    y = CausalConv(cfg.conv_kernel_size, cfg.dtype, name="depthwise")(value * nn.sigmoid(gate))
    y = norm(cfg, "conv_norm", axis="mlp", epsilon=cfg.conv_norm_epsilon)(clip(y, cfg))
    return Linear(cfg, width, ("mlp", "embed"), name="out")(nn.swish(y))


class Block(nn.Module):
  """One block. Padding follows what is real, and only attention looks ahead: it alone needs the mask."""

  config: GemmaAudioConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; the second result is what a scan collects, nothing."""
    cfg = self.config
    x = x + cfg.residual_weight * FeedForward(cfg, name="ffn_in")(x)
    y = LocalAttention(cfg, name="attention")(norm(cfg, "attention_norm")(clip(x, cfg)), mask)
    x = x + norm(cfg, "attention_out_norm")(clip(y, cfg))
    x = x + ConvModule(cfg, name="conv")(x)
    x = x + cfg.residual_weight * FeedForward(cfg, name="ffn_out")(x)
    return keep_rows_apart(norm(cfg, "norm")(clip(x, cfg))), None


def block_stack(config: GemmaAudioConfig, name: str) -> nn.Module:
  """The tower's blocks, scanned: parameters carry a leading "layers" axis. Called as a block is."""
  block = Block
  if config.remat != "none":
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = nn.remat(block, policy=policy if config.remat == "dots" else None, prevent_cse=False)
  layers = nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]  mask
    length=config.num_layers,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  return layers(config, name=name)
