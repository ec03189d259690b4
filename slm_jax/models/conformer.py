"""Conformer blocks (Gulati et al., arXiv:2005.08100 §2) in USM's form (arXiv:2303.01037 §2).

Half-step FFN, relative self-attention, depthwise convolution, half-step FFN, norm. Norms are RMS
norms over the channels of one frame, the convolution module's too: a batch norm there would let
padding and neighbours in the batch change an example.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.log_mel import LogMelConfig
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.models.attention_window import (
  ATTENTION_KINDS,
  AttentionWindow,
  attention_window,
)
from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import WEIGHT_KINDS, Dense
from slm_jax.models.relative_attention import RelativeAttention, relative_positions
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.subsampling import TIME_REDUCTION

_init = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig(SpeechEncoderConfig):
  """Shape of a Conformer-CTC speech encoder; contexts and chunks count encoder frames (40 ms).

  `attention` is "full", "local" (each frame sees `left_context` back and `right_context` ahead,
  USM's pre-training) or "chunk" (each frame sees the frames of its own chunk of `chunk_size`,
  USM's long-form inference; the convolutions still cross chunk borders). `vocab_size` 0 means no
  CTC head. `ffn_dim` None means 4 * model_dim. `intermediate_vocab_size` above 0 gives the middle
  layer a CTC head of its own, for training (Lee and Watanabe, arXiv:2102.03216).
  """

  num_layers: int
  model_dim: int
  num_heads: int
  ffn_dim: int | None = None
  conv_kernel_size: int = 5
  num_mel_bins: int = 128
  subsampling_channels: tuple[int, int] = (128, 32)
  attention: str = "local"
  left_context: int = 128
  right_context: int = 128
  chunk_size: int = 200
  dropout_rate: float = 0.0
  intermediate_vocab_size: int = 0
  # "int8": kernels are stored as `slm_jax.models.quantization` says; frozen ones only.
  weights: str = "float"
  log_mel: LogMelConfig = LogMelConfig()
  spec_augment: SpecAugmentConfig | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.num_layers < 1:
      raise ValueError(f"num_layers={self.num_layers}: expected at least 1")
    if self.model_dim % self.num_heads or self.model_dim % 2:
      raise ValueError(
        f"model_dim={self.model_dim}: expected an even multiple of num_heads={self.num_heads}"
      )
    if self.conv_kernel_size % 2 == 0:
      raise ValueError(f"conv_kernel_size={self.conv_kernel_size}: expected an odd number")
    if len(self.subsampling_channels) != 2:
      raise ValueError(f"subsampling_channels={self.subsampling_channels}: expected two numbers")
    if self.attention not in ATTENTION_KINDS:
      raise ValueError(f"attention={self.attention!r}: expected one of {ATTENTION_KINDS}")
    if min(self.left_context, self.right_context) < 0 or self.chunk_size < 1:
      raise ValueError(
        f"left_context={self.left_context}, right_context={self.right_context}, chunk_size="
        f"{self.chunk_size}: expected contexts of 0 or more and chunks of at least 1 frame"
      )
    if self.weights not in WEIGHT_KINDS:
      raise ValueError(f"weights={self.weights!r}: expected one of {WEIGHT_KINDS}")
    if self.intermediate_vocab_size and self.num_layers < 2:
      raise ValueError(f"num_layers={self.num_layers}: a CTC head in the middle needs at least 2")

  @property
  def ffn_width(self) -> int:
    """F, the inner width of a feed-forward module."""
    return 4 * self.model_dim if self.ffn_dim is None else self.ffn_dim

  @property
  def frame_dim(self) -> int:
    return self.model_dim

  @property
  def frame_samples(self) -> int:
    return TIME_REDUCTION * self.log_mel.hop

  @property
  def window_unit(self) -> int:
    return self.frame_samples * (self.chunk_size if self.attention == "chunk" else 1)

  def frozen(self) -> Self:
    return dataclasses.replace(self, dropout_rate=0.0, spec_augment=None)

  def num_frames(self, num_samples: int) -> int:
    return -(-self.log_mel.num_frames(num_samples) // TIME_REDUCTION)


def norm(config: ConformerConfig, name: str, axis: str = "embed") -> nn.RMSNorm:
  """RMS norm over the last axis, whose logical name is `axis`."""
  scale_init = nn.with_logical_partitioning(nn.initializers.ones, (axis,))
  return nn.RMSNorm(epsilon=1e-6, dtype=config.dtype, scale_init=scale_init, name=name)


def dense(config: ConformerConfig, features: int, axes: tuple[str, str], name: str) -> Dense:
  """Linear layer with bias, whose kernel's logical axes are `axes`."""
  return Dense(
    features, axes, config.dtype, _init, use_bias=True, weights=config.weights, name=name
  )


class FeedForward(nn.Module):
  """Pre-norm, swish, two linear layers (Fig. 4 of the Conformer paper)."""

  config: ConformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    cfg = self.config
    y = norm(cfg, "norm")(x)
    y = nn.swish(dense(cfg, cfg.ffn_width, ("embed", "mlp"), "wi")(y))
    return dense(cfg, x.shape[-1], ("mlp", "embed"), "wo")(y)


class DepthwiseConv(nn.Module):
  """Convolution over time, one filter per channel, zero beyond the ends.

  Written as shifted products: one fused loop on a CPU, where grouped convolutions and their
  gradients are slow.
  """

  kernel_size: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    num_frames, width = x.shape[1:]
    init = nn.with_logical_partitioning(
      nn.initializers.variance_scaling(
        1.0, "fan_in", "normal", in_axis=0, out_axis=(), batch_axis=1
      ),
      ("conv_kernel", "mlp"),
    )
    kernel = jnp.asarray(self.param("kernel", init, (self.kernel_size, width)), self.dtype)
    half = self.kernel_size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
    y = padded[:, :num_frames] * kernel[0]
    for k in range(1, self.kernel_size):
      y = y + padded[:, k : k + num_frames] * kernel[k]
    return y


class ConvModule(nn.Module):
  """Pre-norm, GLU, depthwise convolution, norm, swish, linear (Fig. 2 of the Conformer paper)."""

  config: ConformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; real frames read zeros in place of padding."""
    cfg, width = self.config, x.shape[-1]
    y = norm(cfg, "norm")(x)
    gate = nn.sigmoid(dense(cfg, width, ("embed", "mlp"), "gate")(y))
    y = dense(cfg, width, ("embed", "mlp"), "value")(y) * gate
    y = jnp.where(mask[..., None], y, 0)
    y = DepthwiseConv(cfg.conv_kernel_size, cfg.dtype, name="depthwise")(y)
    y = nn.swish(norm(cfg, "conv_norm", "mlp")(y))
    return dense(cfg, width, ("mlp", "embed"), "out")(y)


class ConformerBlock(nn.Module):
  """One macaron block; dropout acts on what each module adds to the residual stream."""

  config: ConformerConfig
  window: AttentionWindow
  train: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, positions: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """x [B, T, D], mask bool [B, T], positions [W + K, D] -> [B, T, D].

    The second result is what a scan over layers collects: the same again where a layer in the
    middle has a CTC head, else None.
    """
    cfg = self.config
    dropout = nn.Dropout(cfg.dropout_rate, deterministic=not self.train)
    attention = RelativeAttention(cfg.num_heads, cfg.dtype, cfg.weights, name="attention")
    x = x + 0.5 * dropout(FeedForward(cfg, name="ffn_in")(x))
    x = x + dropout(attention(norm(cfg, "attention_norm")(x), mask, positions, self.window))
    x = x + dropout(ConvModule(cfg, name="conv")(x, mask))
    x = x + 0.5 * dropout(FeedForward(cfg, name="ffn_out")(x))
    x = keep_rows_apart(norm(cfg, "norm")(x))
    return x, x if cfg.intermediate_vocab_size else None


class ConformerStack(nn.Module):
  """`num_layers` blocks, scanned: parameters carry a leading "layers" axis."""

  config: ConformerConfig

  def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D], 0 at padding."""
    return self.with_middle(x, mask, train=train)[0]

  @nn.compact
  def with_middle(
    self, x: jax.Array, mask: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """As `__call__`, and the middle layer's output [B, T, D] where that has a CTC head, else None."""
    cfg = self.config
    window = attention_window(
      cfg.attention,
      x.shape[1],
      left=cfg.left_context,
      right=cfg.right_context,
      chunk=cfg.chunk_size,
    )
    positions = jnp.asarray(relative_positions(window, cfg.model_dim), cfg.dtype)

    block = ConformerBlock
    if cfg.remat != "none":
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      block = nn.remat(block, policy=policy if cfg.remat == "dots" else None, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]  mask, positions
      length=cfg.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x = keep_rows_apart(x)
    x, outputs = layers(cfg, window, train, name="layers")(x, mask, positions)
    middle = None if outputs is None else outputs[cfg.num_layers // 2 - 1]
    return jnp.where(mask[..., None], x, 0), middle
