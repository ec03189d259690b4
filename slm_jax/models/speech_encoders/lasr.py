"""LASR, the encoder of Google's MedASR: a Conformer with rotary positions, with or without a CTC head.

Log-mel at 100 frames/s, two strided convolutions over time, Conformer blocks whose residual sums
weight the stream and the module, a norm. A frame is real when all it was convolved from is; nothing
outside an example reaches it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.lasr_log_mel import LasrLogMelConfig, lasr_log_mel
from slm_jax.models.head_attention import over_heads, softmax_over_keys
from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput
from slm_jax.models.speech_encoders.batch_norm_conformer import (
  BlockShape,
  block_stack,
  layer_norm,
)
from slm_jax.models.speech_encoders.row_by_row import Layer, Weights, one_by_one_on_cpu
from slm_jax.models.speech_encoders.w2v_bert_attention import rotate

_init = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LasrConfig(SpeechEncoderConfig):
  """Shape of a LASR encoder.

  `linear_bias` is for attention and feed-forward modules, `conv_bias` for the convolution modules.
  `ffn_weights` and `conv_weights` are the factors of the residual stream and of the module in the sum
  behind such a module. `vocab_size` 0: no CTC head.
  """

  num_layers: int
  model_dim: int
  num_heads: int
  ffn_dim: int
  conv_kernel_size: int = 32
  subsampling_channels: int = 256
  subsampling_kernel_size: int = 5
  subsampling_stride: int = 2
  linear_bias: bool = False
  conv_bias: bool = False
  norm_epsilon: float = 1e-6
  ffn_weights: tuple[float, float] = (1.5, 0.5)
  conv_weights: tuple[float, float] = (2.0, 1.0)
  rotary_base: float = 10_000.0
  log_mel: LasrLogMelConfig = LasrLogMelConfig()

  def __post_init__(self):
    super().__post_init__()
    positive = {
      name: getattr(self, name)
      for name in ("num_layers", "num_heads", "ffn_dim", "conv_kernel_size", "subsampling_channels")
    }
    if min(positive.values()) < 1:
      raise ValueError(f"{positive}: expected positive numbers")
    if self.model_dim < 1 or self.model_dim % (2 * self.num_heads):
      raise ValueError(
        f"model_dim={self.model_dim}: expected a multiple of twice num_heads={self.num_heads}"
      )
    if not 1 <= self.subsampling_stride <= self.subsampling_kernel_size:
      raise ValueError(
        f"subsampling_stride={self.subsampling_stride}, subsampling_kernel_size="
        f"{self.subsampling_kernel_size}: expected 1 <= stride <= kernel size"
      )
    if len(self.ffn_weights) != 2 or len(self.conv_weights) != 2:
      raise ValueError(
        f"ffn_weights={self.ffn_weights}, conv_weights={self.conv_weights}: expected two numbers each"
      )

  @property
  def frame_dim(self) -> int:
    return self.model_dim

  @property
  def frame_samples(self) -> int:
    return self.subsampling_stride**2 * self.log_mel.hop

  def subsampled(self, num_features):
    """Frames of so many mel frames, an int or an int32 array."""
    for _ in range(2):
      after = (num_features - self.subsampling_kernel_size) // self.subsampling_stride + 1
      num_features = after * (after > 0)
    return num_features

  def num_frames(self, num_samples: int) -> int:
    """Frames convolved from whole mel frames; as published, 0 below 2320 samples."""
    return self.subsampled(self.log_mel.num_frames(num_samples))


def strided_conv(x: jax.Array, weights: Weights, stride: int) -> jax.Array:
  """Convolution over time within the ends, ReLU; one product with all taps side by side.

  x [B, T, C], kernel [K, C, features] and bias -> [B, (T - K) // stride + 1, features].
  """
  kernel, bias = weights
  (batch, num_frames, width), size = x.shape, len(kernel)
  steps = (num_frames - size) // stride + 1
  # Frames of one step lie side by side, so that every tap is a plain slice.
  reach = steps - 1 + -(-size // stride)
  x = jnp.pad(x, ((0, 0), (0, max(0, reach * stride - num_frames)), (0, 0)))
  grid = x[:, : reach * stride].reshape(batch, reach, stride, width)
  taps = [grid[:, tap // stride : tap // stride + steps, tap % stride] for tap in range(size)]
  return nn.relu(jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1]) + bias)


class Subsampling(nn.Module):
  """Linear, ReLU, two strided convolutions with ReLU, linear."""

  config: LasrConfig

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """features [B, T', F] -> [B, config.subsampled(T'), D], T' enough for a frame."""
    cfg = self.config
    width, channels = cfg.model_dim, cfg.subsampling_channels
    taps, stride = cfg.subsampling_kernel_size, cfg.subsampling_stride

    def layer(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Weights:
      return Layer(shape, axes, _init, cfg.dtype, name=name)()

    before = layer("dense_0", (features.shape[-1], width), ("mel", "embed"))
    first = layer("conv_0", (taps, width, width), ("conv_kernel", "embed", "mlp"))
    second = layer("conv_1", (taps, width, channels), ("conv_kernel", "embed", "conv_out"))
    after = layer("dense_1", (channels, width), ("conv_out", "embed"))

    def subsample(x: jax.Array) -> jax.Array:
      x = nn.relu(x @ before[0] + before[1])
      x = strided_conv(strided_conv(x, first, stride), second, stride)
      return x @ after[0] + after[1]

    return one_by_one_on_cpu(subsample, features.astype(cfg.dtype))


class SelfAttention(nn.Module):
  """Multi-head attention of every frame to every real frame, with rotary positions."""

  num_heads: int
  use_bias: bool
  rotary_base: float
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, positions: None = None) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; `positions` are not looked at."""
    width, heads = x.shape[-1], self.num_heads
    head_dim = width // heads

    def project(name: str) -> jax.Array:
      axes = ("embed", "joined_kv")
      y = Dense(width, axes, self.dtype, _init, use_bias=self.use_bias, name=name)(x)
      return y.reshape(*x.shape[:-1], heads, head_dim)

    query = rotate(project("query") * head_dim**-0.5, self.rotary_base)
    key, value = rotate(project("key"), self.rotary_base), project("value")

    def one_head(query, key, value, allowed):
      scores = jnp.matmul(query, key.T, preferred_element_type=jnp.float32)
      return softmax_over_keys(scores, value, allowed)

    y = over_heads(one_head, query, key, value, rows=(mask[:, None],)).reshape(x.shape)
    axes = ("joined_kv", "embed")
    return Dense(width, axes, self.dtype, _init, use_bias=self.use_bias, name="out")(y)


class LasrEncoder(nn.Module):
  """Log-mel, subsampling to 25 frames/s, blocks, norm, CTC head."""

  config: LasrConfig

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> log-mel fp32 [B, T', F], mask bool [B, T']; 10 ms each."""
    return lasr_log_mel(audio, lengths, self.config.log_mel)

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
      The frames, T = config.num_frames(S) of them, 40 ms each.
    """
    cfg = self.config
    features, _ = self.features(audio, lengths)
    # Too short for any frame: one of padding, cut off at the end.
    needed = cfg.subsampling_kernel_size + cfg.subsampling_stride * (
      cfg.subsampling_kernel_size - 1
    )
    missing = max(0, needed - features.shape[1])
    features = jnp.pad(features, ((0, 0), (0, missing), (0, 0)))
    x = Subsampling(cfg, name="subsampling")(features)
    real = cfg.subsampled(cfg.log_mel.num_frames(lengths))
    mask = jnp.arange(x.shape[1])[None] < real[:, None]
    shape = BlockShape(
      ffn_dim=cfg.ffn_dim,
      kernel_size=cfg.conv_kernel_size,
      dtype=cfg.dtype,
      norm_bias=False,
      ffn_bias=cfg.linear_bias,
      pointwise_bias=cfg.conv_bias,
      depthwise_bias=cfg.conv_bias,
      norm_epsilon=cfg.norm_epsilon,
      ffn_weights=cfg.ffn_weights,
      conv_weights=cfg.conv_weights,
    )
    attention = functools.partial(
      SelfAttention, cfg.num_heads, cfg.linear_bias, cfg.rotary_base, cfg.dtype
    )
    layers = block_stack(
      shape, attention, num_layers=cfg.num_layers, remat=cfg.remat, name="layers"
    )
    x, _ = layers(x, mask, None)
    x = layer_norm(shape, "norm")(x)
    num_frames = cfg.num_frames(audio.shape[1])
    x, mask = x[:, :num_frames], mask[:, :num_frames]
    frames = jnp.where(mask[..., None], x, 0)
    logits = None
    if cfg.vocab_size:
      axes = ("embed", "vocab")
      head = Dense(cfg.vocab_size, axes, cfg.dtype, _init, use_bias=True, name="ctc_head")
      logits = head(frames).astype(jnp.float32)
    return SpeechEncoderOutput(frames=frames, mask=mask, ctc_logits=logits, blank_id=cfg.blank_id)
