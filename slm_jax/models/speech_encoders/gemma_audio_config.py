"""Shapes of the audio towers of Gemma 3n and Gemma 4."""

import dataclasses
from typing import ClassVar

import numpy as np

from slm_jax.audio.gemma_log_mel import GEMMA4_LOG_MEL, GemmaLogMelConfig
from slm_jax.models.speech_encoder import SpeechEncoderConfig

# The subsampling's: two convolutions of stride 2.
_TIME_REDUCTION = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaAudioConfig(SpeechEncoderConfig):
  """What both towers have; they have no CTC head.

  Attributes:
    left_context, right_context: frames back and ahead that attention sees, besides the frame itself.
    logit_cap: attention scores x become cap * tanh(x / cap).
    residual_weight: factor of a feed-forward module in the sum.
    clipping: activations are held within plus and minus this.
    conv_norm_epsilon: of the convolution modules' norms, and of Gemma 4's subsampling norms.
    clipped_linears: inputs and outputs of linear layers are held within bounds that are stored with
      their weights.
  """

  num_layers: int = 12
  model_dim: int
  num_heads: int = 8
  subsampling_channels: tuple[int, int] = (128, 32)
  conv_kernel_size: int = 5
  left_context: int
  right_context: int = 0
  logit_cap: float = 50.0
  residual_weight: float = 0.5
  clipping: float = 1e10
  conv_norm_epsilon: float = 1e-6
  clipped_linears: bool = False
  log_mel: GemmaLogMelConfig

  # Factor of a query's product with a key, but not with a distance.
  key_scale: ClassVar[float] = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.vocab_size:
      raise ValueError(f"vocab_size={self.vocab_size}: the tower has no CTC head, expected 0")
    positive = {
      name: getattr(self, name) for name in ("num_layers", "num_heads", "conv_kernel_size")
    }
    if min(positive.values()) < 1:
      raise ValueError(f"{positive}: expected positive numbers")
    if self.model_dim < 1 or self.model_dim % self.num_heads or self.model_dim % 2:
      raise ValueError(
        f"model_dim={self.model_dim}: expected an even multiple of num_heads={self.num_heads}"
      )
    if len(self.subsampling_channels) != 2 or min(self.subsampling_channels) < 1:
      raise ValueError(
        f"subsampling_channels={self.subsampling_channels}: expected two positive numbers"
      )
    if min(self.left_context, self.right_context) < 0:
      raise ValueError(
        f"left_context={self.left_context}, right_context={self.right_context}: expected 0 or more"
      )
    if min(self.logit_cap, self.clipping) <= 0:
      raise ValueError(
        f"logit_cap={self.logit_cap}, clipping={self.clipping}: expected positive numbers"
      )

  @property
  def frame_dim(self) -> int:
    return self.model_dim

  @property
  def reduction_factor(self) -> int:
    """Of so many frames the last layer makes, the first one is kept."""
    return 1

  @property
  def frame_samples(self) -> int:
    return _TIME_REDUCTION * self.reduction_factor * self.log_mel.hop

  def num_frames(self, num_samples: int) -> int:
    return -(-self.log_mel.num_frames(num_samples) // (_TIME_REDUCTION * self.reduction_factor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3nAudioConfig(GemmaAudioConfig):
  """Gemma 3n's: of `reduction` frames of 40 ms the first one is kept, 160 ms a frame."""

  model_dim: int = 1536
  left_context: int = 12
  group_norm_epsilon: float = 1e-3
  reduction: int = 4
  log_mel: GemmaLogMelConfig = GemmaLogMelConfig()

  def __post_init__(self):
    super().__post_init__()
    if self.reduction < 1:
      raise ValueError(f"reduction={self.reduction}: expected 1 or more")

  @property
  def reduction_factor(self) -> int:
    return self.reduction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4AudioConfig(GemmaAudioConfig):
  """Gemma 4's: 40 ms a frame. `output_dim` is the width that the last layer's output is projected to."""

  model_dim: int = 1024
  left_context: int = 11
  clipped_linears: bool = True
  output_dim: int = 1536
  log_mel: GemmaLogMelConfig = GEMMA4_LOG_MEL

  key_scale: ClassVar[float] = float(np.log1p(np.e) / np.log(2))

  def __post_init__(self):
    super().__post_init__()
    if self.output_dim < 1:
      raise ValueError(f"output_dim={self.output_dim}: expected a positive number")

  @property
  def frame_dim(self) -> int:
    return self.output_dim
