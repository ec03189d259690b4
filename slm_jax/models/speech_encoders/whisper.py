"""Whisper's encoder (Radford et al., arXiv:2212.04356 §2.2): a transformer over a window of 30 s.

Attention knows no mask. The network was trained on windows padded with silence, which it reads as
it reads speech; an example's frames are those of its own samples, cut out at the end.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.whisper_log_mel import WhisperLogMelConfig, whisper_log_mel
from slm_jax.models.head_attention import over_heads, softmax_over_keys
from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput

_init = nn.initializers.lecun_normal()
# Features to a frame: the second convolution's stride.
_STRIDE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig(SpeechEncoderConfig):
  """Shape of a Whisper encoder, which has no CTC head."""

  num_layers: int
  model_dim: int
  num_heads: int
  ffn_dim: int
  log_mel: WhisperLogMelConfig = WhisperLogMelConfig()

  def __post_init__(self):
    super().__post_init__()
    if min(self.num_layers, self.num_heads, self.ffn_dim) < 1 or self.model_dim % self.num_heads:
      raise ValueError(
        f"num_layers={self.num_layers}, model_dim={self.model_dim}, num_heads={self.num_heads}, "
        f"ffn_dim={self.ffn_dim}: expected positive numbers and a model_dim that num_heads divides"
      )
    if self.vocab_size:
      raise ValueError(
        f"vocab_size={self.vocab_size}: Whisper's encoder has no CTC head, expected 0"
      )

  @property
  def window_frames(self) -> int:
    """Frames that attend to each other, whatever the length of the waveform."""
    return self.log_mel.num_frames // _STRIDE

  @property
  def frame_dim(self) -> int:
    return self.model_dim

  @property
  def frame_samples(self) -> int:
    return _STRIDE * self.log_mel.hop

  @property
  def max_samples(self) -> int:
    return self.log_mel.num_samples

  def num_frames(self, num_samples: int) -> int:
    """Frames centred on one of the samples; raises ValueError beyond `max_samples`."""
    self.log_mel.check(num_samples)
    return -(-num_samples // self.frame_samples)


def layer_norm(config: WhisperConfig, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=1e-5,
    dtype=config.dtype,
    use_fast_variance=False,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
    name=name,
  )


class Convolution(nn.Module):
  """Over time, kernel 3, a zero at each end, GELU; one product with all taps side by side."""

  features: int
  axes: tuple[str, str, str]
  stride: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, C], T a multiple of the stride -> [B, T / stride, features]."""
    taps, shape = 3, (3, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.with_logical_partitioning(_init, self.axes), shape)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[-1:])
    bias = jnp.asarray(self.param("bias", bias_init, (self.features,)), self.dtype)
    batch, num_frames, width = x.shape
    # Frames of one step lie side by side, so that every tap is a plain slice.
    padded = jnp.pad(x, ((0, 0), (1, 2 * self.stride - 1), (0, 0)))
    steps = padded.reshape(batch, -1, self.stride, width)
    num_steps = num_frames // self.stride
    pieces = [
      steps[:, tap // self.stride : tap // self.stride + num_steps, tap % self.stride]
      for tap in range(taps)
    ]
    kernel = jnp.asarray(kernel, self.dtype).reshape(-1, self.features)
    return nn.gelu(jnp.concatenate(pieces, axis=-1) @ kernel + bias, approximate=False)


class SelfAttention(nn.Module):
  """Multi-head attention of every frame to every frame; keys have no bias."""

  config: WhisperConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    cfg, width = self.config, x.shape[-1]
    heads, head_dim = cfg.num_heads, width // cfg.num_heads

    def project(name: str, use_bias: bool) -> jax.Array:
      axes = ("embed", "joined_kv")
      y = Dense(width, axes, cfg.dtype, _init, use_bias=use_bias, name=name)(x)
      return y.reshape(*x.shape[:-1], heads, head_dim)

    query = project("query", True) * head_dim**-0.5
    key, value = project("key", False), project("value", True)

    def one_head(query, key, value):
      scores = jnp.matmul(query, key.T, preferred_element_type=jnp.float32)
      return softmax_over_keys(scores, value)

    y = over_heads(one_head, query, key, value).reshape(x.shape)
    return Dense(width, ("joined_kv", "embed"), cfg.dtype, _init, use_bias=True, name="out")(y)


class Block(nn.Module):
  """Pre-norm attention, then pre-norm feed-forward with GELU."""

  config: WhisperConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """x [B, T, D] -> [B, T, D]; the second result is what a scan collects, nothing."""
    cfg = self.config
    x = x + SelfAttention(cfg, name="attention")(layer_norm(cfg, "attention_norm")(x))
    y = layer_norm(cfg, "ffn_norm")(x)
    wi = Dense(cfg.ffn_dim, ("embed", "mlp"), cfg.dtype, _init, use_bias=True, name="wi")
    wo = Dense(cfg.model_dim, ("mlp", "embed"), cfg.dtype, _init, use_bias=True, name="wo")
    return keep_rows_apart(x + wo(nn.gelu(wi(y), approximate=False))), None


class WhisperEncoder(nn.Module):
  """Log-mel, two convolutions to 50 frames/s, learned positions, blocks, norm."""

  config: WhisperConfig

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> log-mel fp32 [B, T', F], mask bool [B, T']; 10 ms each.

    T' covers S. The network reads the rest of the window as well, and what is 0 here at padding.
    """
    features, mask = whisper_log_mel(audio, lengths, self.config.log_mel)
    covered = -(-audio.shape[1] // self.config.log_mel.hop)
    features, mask = features[:, :covered], mask[:, :covered]
    return jnp.where(mask[..., None], features, 0.0), mask

  @nn.compact
  def __call__(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> SpeechEncoderOutput:
    """Encodes.

    Args:
      audio: int16, or float in [-1, 1], [B, S] at 16 kHz, S <= config.max_samples; what lies past
        the lengths is ignored.
      lengths: int32 [B], in samples.
      train: changes nothing.

    Returns:
      The frames, T = config.num_frames(S) of them, 20 ms each.

    Raises:
      ValueError: S is more than config.max_samples.
    """
    cfg = self.config
    features, mask = whisper_log_mel(audio, lengths, cfg.log_mel)
    x = features.astype(cfg.dtype)
    axes = ("conv_kernel", "mel", "embed")
    x = Convolution(cfg.model_dim, axes, 1, cfg.dtype, name="conv_0")(x)
    axes = ("conv_kernel", "conv_in", "embed")
    x = Convolution(cfg.model_dim, axes, _STRIDE, cfg.dtype, name="conv_1")(x)
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("positions", "embed"))
    positions = self.param("positions", init, (cfg.window_frames, cfg.model_dim))
    x = x + jnp.asarray(positions, cfg.dtype)

    block = Block
    if cfg.remat != "none":
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      block = nn.remat(block, policy=policy if cfg.remat == "dots" else None, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=cfg.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = layers(cfg, name="layers")(x)
    x = layer_norm(cfg, "norm")(x)
    # A frame is centred on the even one of its two features, hence real exactly when that is.
    num_frames = cfg.num_frames(audio.shape[1])
    mask = mask[:, ::_STRIDE][:, :num_frames]
    frames = jnp.where(mask[..., None], x[:, :num_frames], 0)
    return SpeechEncoderOutput(frames=frames, mask=mask, ctc_logits=None)
