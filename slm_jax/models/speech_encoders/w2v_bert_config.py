"""Shape of w2v-BERT 2.0 and of the convolutional adapter that may follow it."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from slm_jax.audio.kaldi_fbank import KaldiFbankConfig
from slm_jax.models.speech_encoder import SpeechEncoderConfig

# Mel frames to an encoder frame.
STACKED = 2
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_new": functools.partial(nn.gelu, approximate=True),
  "relu": nn.relu,
  "silu": nn.silu,
  "swish": nn.silu,
}
# How attention knows of distance: Shaw et al., arXiv:1803.02155; Transformer-XL, arXiv:1901.02860;
# rotary, arXiv:2104.09864; not at all.
POSITIONS = ("relative_key", "relative", "rotary", None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBertAdapterConfig:
  """Layers that each keep one frame in `stride`; `intermediate_ffn` puts a half-step FFN, with ReLU,
  in front of them."""

  output_dim: int
  num_layers: int = 1
  kernel_size: int = 3
  stride: int = 2
  activation: str = "relu"
  intermediate_ffn: bool = False

  def __post_init__(self):
    if min(self.output_dim, self.num_layers, self.kernel_size, self.stride) < 1:
      raise ValueError(
        f"adapter: output_dim={self.output_dim}, num_layers={self.num_layers}, kernel_size="
        f"{self.kernel_size}, stride={self.stride}: expected positive numbers"
      )
    if self.kernel_size // 2 != self.stride // 2:
      raise ValueError(
        f"adapter: kernel_size={self.kernel_size}, stride={self.stride}: expected the same number of "
        "pairs in both; others pad by the one and count frames by the other"
      )
    _check_activation(self.activation)

  @property
  def padding(self) -> int:
    """Zeros at each end."""
    return self.stride // 2

  def num_frames(self, num_frames, layers: int | None = None):
    """Frames after `layers` layers (None: all), of an int or an int32 array; 0 stay 0."""
    for _ in range(self.num_layers if layers is None else layers):
      after = (num_frames + 2 * self.padding - self.kernel_size) // self.stride + 1
      num_frames = after * (num_frames > 0)
    return num_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBertConfig(SpeechEncoderConfig):
  """Shape of a w2v-BERT 2.0 encoder.

  With `positions` "relative_key" a key more than `left_positions` frames back, or more than
  `right_positions` ahead, counts as that far. `rotary_base` is for "rotary" alone.
  """

  num_layers: int
  model_dim: int
  num_heads: int
  ffn_dim: int
  conv_kernel_size: int = 31
  activation: str = "swish"
  positions: str | None = "relative_key"
  left_positions: int = 64
  right_positions: int = 8
  rotary_base: float = 10_000.0
  layer_norm_eps: float = 1e-5
  adapter: W2vBertAdapterConfig | None = None
  fbank: KaldiFbankConfig = KaldiFbankConfig()

  def __post_init__(self):
    super().__post_init__()
    if min(self.num_layers, self.num_heads, self.ffn_dim) < 1:
      raise ValueError(
        f"num_layers={self.num_layers}, num_heads={self.num_heads}, ffn_dim={self.ffn_dim}: expected "
        "positive numbers"
      )
    for width in {self.model_dim, self.frame_dim}:
      if width < 1 or width % self.num_heads:
        raise ValueError(
          f"width {width}: expected a positive multiple of num_heads={self.num_heads}"
        )
    if self.conv_kernel_size < 1 or self.conv_kernel_size % 2 == 0:
      raise ValueError(f"conv_kernel_size={self.conv_kernel_size}: expected an odd number")
    _check_activation(self.activation)
    if self.positions not in POSITIONS:
      raise ValueError(f"positions={self.positions!r}: expected one of {POSITIONS}")
    if min(self.left_positions, self.right_positions) < 0:
      raise ValueError(
        f"left_positions={self.left_positions}, right_positions={self.right_positions}: expected 0 or "
        "more"
      )
    sinusoid = {"relative": self.model_dim, "rotary": self.model_dim // self.num_heads}
    if sinusoid.get(self.positions or "", 0) % 2:
      raise ValueError(
        f"model_dim={self.model_dim}, num_heads={self.num_heads}: positions={self.positions!r} needs "
        "an even width"
      )

  @property
  def frame_dim(self) -> int:
    return self.adapter.output_dim if self.adapter else self.model_dim

  @property
  def frame_samples(self) -> int:
    reduction = self.adapter.stride**self.adapter.num_layers if self.adapter else 1
    return STACKED * self.fbank.hop * reduction

  def num_frames(self, num_samples: int) -> int:
    """Whole pairs of mel frames, after the adapter's strides; 0 below 560 samples."""
    pairs = self.fbank.num_frames(num_samples) // STACKED
    return self.adapter.num_frames(pairs) if self.adapter else pairs


def _check_activation(name: str) -> None:
  if name not in ACTIVATIONS:
    raise ValueError(f"activation={name!r}: expected one of {sorted(ACTIVATIONS)}")
