"""Granite-Speech's encoder (arXiv:2505.08699 §2.1): a Conformer that attends within blocks.

Pairs of log-mel frames, Conformer blocks whose self-attention stays in chunks of `context` frames and
knows distances by learned vectors (Shaw et al., arXiv:1803.02155). The CTC head of the layer in the
middle conditions the layers after it (Nozaki and Komatsu, arXiv:2104.02724).

The published encoder knows no padding, and its batches of unequal lengths are not what their
examples are alone; here every example is.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.granite_speech_log_mel import (
  HOP,
  GraniteSpeechLogMelConfig,
  granite_speech_log_mel,
  num_mel_frames,
)
from slm_jax.models.attention_window import attention_window
from slm_jax.models.head_attention import over_heads, softmax_over_keys
from slm_jax.models.quantization import Dense
from slm_jax.models.relative_attention import relative_shift
from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput
from slm_jax.models.speech_encoders.batch_norm_conformer import BlockShape, block_stack

_init = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteSpeechConfig(SpeechEncoderConfig):
  """Shape of a Granite-Speech encoder; `context` and `max_distance` count frames of 20 ms.

  The head in the middle has `intermediate_vocab_size` classes. Published folders do not say which
  of them is the blank, so nothing decodes it: `vocab_size` is 0.
  """

  num_layers: int
  model_dim: int
  num_heads: int
  head_dim: int
  ffn_dim: int
  conv_dim: int
  intermediate_vocab_size: int
  conv_kernel_size: int = 15
  context: int = 200
  max_distance: int = 512
  log_mel: GraniteSpeechLogMelConfig = GraniteSpeechLogMelConfig()

  def __post_init__(self):
    super().__post_init__()
    positive = {
      name: getattr(self, name)
      for name in (
        "model_dim", "num_heads", "head_dim", "ffn_dim", "conv_dim", "intermediate_vocab_size"
      )
    }  # fmt: skip
    if min(positive.values()) < 1 or self.num_layers < 2:
      raise ValueError(
        f"num_layers={self.num_layers}, {positive}: expected 2 layers or more and positive numbers"
      )
    if self.conv_kernel_size < 1 or self.conv_kernel_size % 2 == 0:
      raise ValueError(f"conv_kernel_size={self.conv_kernel_size}: expected an odd number")
    if not 1 <= self.context <= self.max_distance:
      raise ValueError(
        f"context={self.context}, max_distance={self.max_distance}: expected 1 <= context <= "
        "max_distance"
      )
    if self.vocab_size:
      raise ValueError(f"vocab_size={self.vocab_size}: the last layer has no CTC head, expected 0")

  @property
  def frame_dim(self) -> int:
    return self.model_dim

  @property
  def frame_samples(self) -> int:
    return 2 * HOP

  @property
  def window_unit(self) -> int:
    return self.context * self.frame_samples

  def num_frames(self, num_samples: int) -> int:
    """Whole pairs of mel frames; 0 up to 256 samples."""
    return num_mel_frames(num_samples) // 2


class SelfAttention(nn.Module):
  """Multi-head attention of every frame to the real ones of its chunk, with learned distances."""

  config: GraniteSpeechConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, positions: None = None) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; `positions` are not looked at."""
    cfg, (batch, num_frames, width) = self.config, x.shape
    heads, head_dim = cfg.num_heads, cfg.head_dim
    window = attention_window("chunk", num_frames, left=0, right=0, chunk=cfg.context)

    def project(name: str) -> jax.Array:
      y = Dense(heads * head_dim, ("embed", "joined_kv"), cfg.dtype, _init, name=name)(x)
      y = window.blocks(y.reshape(batch, num_frames, heads, head_dim))
      return y.reshape(-1, *y.shape[2:])  # [B * T / W, W, N, H]

    query, key, value = (project(name) for name in ("query", "key", "value"))
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("relpos_buckets", "kv"))
    table = self.param("distances", init, (2 * cfg.max_distance + 1, head_dim))
    # Distances W … 1 - W, query minus key, as `relative_shift` wants them.
    first = cfg.max_distance - window.block + 1
    table = jnp.asarray(table, cfg.dtype)[first : first + 2 * window.block][::-1]

    def one_head(query, key, value, allowed, table):
      product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
      scores = product(query, key.T) + relative_shift(product(query, table.T))
      return softmax_over_keys(scores, value, allowed)

    allowed = window.allowed(mask)
    y = over_heads(
      one_head,
      query * head_dim**-0.5,
      key,
      value,
      rows=(allowed.reshape(-1, *allowed.shape[2:]),),
      heads=(jnp.broadcast_to(table, (heads, *table.shape)),),
    )
    y = y.reshape(batch, -1, heads * head_dim)[:, :num_frames]
    return Dense(width, ("joined_kv", "embed"), cfg.dtype, _init, use_bias=True, name="out")(y)


class GraniteSpeechEncoder(nn.Module):
  """Log-mel in pairs, projection, blocks, a CTC head between the two halves of them."""

  config: GraniteSpeechConfig

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> fp32 [B, T, 2F], mask bool [B, T]; 20 ms each."""
    return granite_speech_log_mel(audio, lengths, self.config.log_mel)

  @nn.compact
  def __call__(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> SpeechEncoderOutput:
    """Encodes.

    Args:
      audio: int16, or float in [-1, 1], [B, S] at 16 kHz; what lies past the lengths is ignored.
      lengths: int32 [B], in samples.
      train: changes nothing.

    Returns:
      The frames, T = config.num_frames(S) of them, 20 ms each, and the logits of the head in the
      middle.
    """
    cfg = self.config
    features, mask = self.features(audio, lengths)
    if features.shape[1] == 0:  # too short for any: one frame of padding, cut off at the end
      features, mask = (
        jnp.zeros_like(x, shape=(len(x), 1, *x.shape[2:])) for x in (features, mask)
      )

    def dense(size: int, axes: tuple[str, str], name: str) -> Dense:
      return Dense(size, axes, cfg.dtype, _init, use_bias=True, name=name)

    shape = BlockShape(
      ffn_dim=cfg.ffn_dim,
      kernel_size=cfg.conv_kernel_size,
      conv_dim=cfg.conv_dim,
      dtype=cfg.dtype,
      depthwise_bias=False,
    )
    attention = functools.partial(SelfAttention, cfg)
    blocks = functools.partial(block_stack, shape, attention, remat=cfg.remat)
    x = dense(cfg.model_dim, ("mel", "embed"), "projection")(features)
    lower = cfg.num_layers // 2
    x, _ = blocks(num_layers=lower, name="lower_layers")(x, mask, None)
    logits = dense(cfg.intermediate_vocab_size, ("embed", "vocab"), "intermediate_ctc_head")(x)
    logits = logits.astype(jnp.float32)
    guess = jax.nn.softmax(logits).astype(cfg.dtype)
    x = x + dense(cfg.model_dim, ("vocab", "embed"), "condition")(guess)
    x, _ = blocks(num_layers=cfg.num_layers - lower, name="upper_layers")(x, mask, None)
    num_frames = cfg.num_frames(audio.shape[1])
    x, mask, logits = (y[:, :num_frames] for y in (x, mask, logits))
    frames = jnp.where(mask[..., None], x, 0)
    return SpeechEncoderOutput(
      frames=frames, mask=mask, ctc_logits=None, intermediate_ctc_logits=logits
    )
