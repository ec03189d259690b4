"""Parakeet's encoder, a Fast Conformer (Rekesh et al., arXiv:2305.05084), with or without a CTC head.

Log-mel at 100 frames/s, subsampling by 8, Conformer blocks whose self-attention knows the distances
of all pairs (Transformer-XL, arXiv:1901.02860 §3.3). Nothing outside an example reaches it: the
batch norms are those of inference, and padding is zeroed before every convolution.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.parakeet_log_mel import ParakeetLogMelConfig, parakeet_log_mel
from slm_jax.models.head_attention import over_heads, softmax_over_keys
from slm_jax.models.quantization import Dense
from slm_jax.models.relative_attention import relative_shift
from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput
from slm_jax.models.speech_encoders.batch_norm_conformer import BlockShape, block_stack
from slm_jax.models.speech_encoders.parakeet_subsampling import DepthwiseSubsampling
from slm_jax.models.speech_encoders.w2v_bert_attention import interleaved_sinusoids

_init = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParakeetConfig(SpeechEncoderConfig):
  """Shape of a Parakeet encoder.

  `linear_bias` is for attention and feed-forward modules, `conv_bias` for the convolution modules;
  `scale_input` multiplies what enters the blocks by the root of D. `vocab_size` 0: no CTC head.
  """

  num_layers: int
  model_dim: int
  num_heads: int
  ffn_dim: int
  conv_kernel_size: int = 9
  subsampling_factor: int = 8
  subsampling_channels: int = 256
  linear_bias: bool = True
  conv_bias: bool = True
  scale_input: bool = True
  log_mel: ParakeetLogMelConfig = ParakeetLogMelConfig()

  def __post_init__(self):
    super().__post_init__()
    if min(self.num_layers, self.num_heads, self.ffn_dim, self.subsampling_channels) < 1:
      raise ValueError(
        f"num_layers={self.num_layers}, num_heads={self.num_heads}, ffn_dim={self.ffn_dim}, "
        f"subsampling_channels={self.subsampling_channels}: expected positive numbers"
      )
    if self.model_dim % self.num_heads or self.model_dim % 2 or self.model_dim < 1:
      raise ValueError(
        f"model_dim={self.model_dim}: expected an even multiple of num_heads={self.num_heads}"
      )
    if self.conv_kernel_size < 1 or self.conv_kernel_size % 2 == 0:
      raise ValueError(f"conv_kernel_size={self.conv_kernel_size}: expected an odd number")
    factor = self.subsampling_factor
    if factor < 2 or factor & (factor - 1) or self.log_mel.num_mel_bins % factor:
      raise ValueError(
        f"subsampling_factor={factor}: expected a power of 2 that divides the "
        f"{self.log_mel.num_mel_bins} mel bins"
      )

  @property
  def frame_dim(self) -> int:
    return self.model_dim

  @property
  def frame_samples(self) -> int:
    return self.subsampling_factor * self.log_mel.hop

  def num_frames(self, num_samples: int) -> int:
    """Mel frames by `subsampling_factor`, rounded up; 0 below one hop."""
    return -(-self.log_mel.num_frames(num_samples) // self.subsampling_factor)


class SelfAttention(nn.Module):
  """Multi-head attention of every frame to every real frame, with relative positions."""

  num_heads: int
  use_bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, positions: jax.Array) -> jax.Array:
    """x [B, T, D], mask bool [B, T], positions [2T, D], of `interleaved_sinusoids` -> [B, T, D]."""
    width, heads = x.shape[-1], self.num_heads
    head_dim = width // heads
    scale = head_dim**-0.5

    def project(inputs: jax.Array, name: str, use_bias: bool) -> jax.Array:
      axes = ("embed", "joined_kv")
      y = Dense(width, axes, self.dtype, _init, use_bias=use_bias, name=name)(inputs)
      return y.reshape(*inputs.shape[:-1], heads, head_dim)

    def bias(name: str) -> jax.Array:
      init = nn.with_logical_partitioning(nn.initializers.zeros, ("heads", "kv"))
      return jnp.asarray(self.param(name, init, (heads, head_dim)), self.dtype) * scale

    query, key, value = (project(x, name, self.use_bias) for name in ("query", "key", "value"))
    distance = jnp.moveaxis(project(positions, "position", False), 1, 0)  # [N, 2T, H]

    def one_head(query, key, value, allowed, distance, content_bias, position_bias):
      product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
      by_distance = relative_shift(product(query + position_bias, distance.T))
      scores = product(query + content_bias, key.T) + by_distance
      return softmax_over_keys(scores, value, allowed)

    y = over_heads(
      one_head,
      query * scale,
      key,
      value,
      rows=(mask[:, None],),
      heads=(distance, bias("content_bias"), bias("position_bias")),
    )
    axes = ("joined_kv", "embed")
    dense = Dense(width, axes, self.dtype, _init, use_bias=self.use_bias, name="out")
    return dense(y.reshape(x.shape))


class ParakeetEncoder(nn.Module):
  """Log-mel, subsampling to 12.5 frames/s, blocks, CTC head."""

  config: ParakeetConfig

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> log-mel fp32 [B, T', F], mask bool [B, T']; 10 ms each."""
    return parakeet_log_mel(audio, lengths, self.config.log_mel)

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
      The frames, T = config.num_frames(S) of them, 80 ms each.
    """
    cfg = self.config
    features, mask = self.features(audio, lengths)
    if features.shape[1] == 0:  # too short for any: one frame of padding, cut off at the end
      features, mask = (
        jnp.zeros_like(x, shape=(len(x), 1, *x.shape[2:])) for x in (features, mask)
      )
    halvings = int(math.log2(cfg.subsampling_factor))
    x, mask = DepthwiseSubsampling(
      halvings, cfg.subsampling_channels, cfg.model_dim, cfg.dtype, name="subsampling"
    )(features, mask)
    x = x * math.sqrt(cfg.model_dim) if cfg.scale_input else x
    shape = BlockShape(
      ffn_dim=cfg.ffn_dim,
      kernel_size=cfg.conv_kernel_size,
      dtype=cfg.dtype,
      ffn_bias=cfg.linear_bias,
      pointwise_bias=cfg.conv_bias,
      depthwise_bias=cfg.conv_bias,
    )
    attention = functools.partial(SelfAttention, cfg.num_heads, cfg.linear_bias, cfg.dtype)
    layers = block_stack(
      shape, attention, num_layers=cfg.num_layers, remat=cfg.remat, name="layers"
    )
    positions = jnp.asarray(interleaved_sinusoids(x.shape[1], cfg.model_dim), cfg.dtype)
    x, _ = layers(x, mask, positions)
    num_frames = cfg.num_frames(audio.shape[1])
    x, mask = x[:, :num_frames], mask[:, :num_frames]
    frames = jnp.where(mask[..., None], x, 0)
    logits = None
    if cfg.vocab_size:
      axes = ("embed", "vocab")
      head = Dense(cfg.vocab_size, axes, cfg.dtype, _init, use_bias=True, name="ctc_head")
      logits = head(frames).astype(jnp.float32)
    return SpeechEncoderOutput(frames=frames, mask=mask, ctc_logits=logits, blank_id=cfg.blank_id)
