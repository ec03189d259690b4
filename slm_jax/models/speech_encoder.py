"""What every speech encoder has in common: the seat between the waveform and the adapter.

An encoder is a Flax module built from its config alone, with two methods:

  features(audio, lengths) -> (features [B, T', F], mask bool [B, T'])
  __call__(audio, lengths, *, train=False) -> SpeechEncoderOutput

`audio` is int16, or float in [-1, 1], [B, S] at 16 kHz, and `lengths` int32 [B] in samples; what lies
past the lengths is ignored. The families are listed in `slm_jax.models.speech_encoders.families`.
"""

import dataclasses
from typing import Self

import jax
from flax import struct

REMAT_KINDS = ("none", "full", "dots")


@struct.dataclass
class SpeechEncoderOutput:
  """What every speech encoder returns.

  Attributes:
    frames: [B, T, D], 0 at padding.
    mask: bool [B, T], True = real; real frames come first.
    ctc_logits: fp32 [B, T, V], classes in the order of the weights' own vocabulary; None without a
      CTC head.
    intermediate_ctc_logits: fp32 [B, T, intermediate vocabulary], or None.
    blank_id: the class of `ctc_logits` that is the blank.
  """

  frames: jax.Array
  mask: jax.Array
  ctc_logits: jax.Array | None
  intermediate_ctc_logits: jax.Array | None = None
  blank_id: int = struct.field(pytree_node=False, default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechEncoderConfig:
  """What the rest of the model asks of an encoder's config; each family adds its shape.

  `vocab_size` 0 means no CTC head; otherwise class `blank_id` is the blank. `dtype` is the compute
  type, `remat` what a backward pass computes again: "none", "full" (everything) or "dots" (all but
  matrix products).
  """

  vocab_size: int = 0
  blank_id: int = 0
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    if self.vocab_size < 0 or not 0 <= self.blank_id < max(1, self.vocab_size):
      raise ValueError(
        f"vocab_size={self.vocab_size}, blank_id={self.blank_id}: expected 0 classes or more, one of "
        f"them the blank"
      )
    if self.remat not in REMAT_KINDS:
      raise ValueError(f"remat={self.remat!r}: expected one of {REMAT_KINDS}")

  @property
  def frame_dim(self) -> int:
    """D, the width of a frame."""
    raise NotImplementedError

  @property
  def frame_samples(self) -> int:
    """Samples from one frame to the next."""
    raise NotImplementedError

  @property
  def window_unit(self) -> int:
    """Samples that windows of a long waveform are multiples of, for frames to stay where they were."""
    return self.frame_samples

  @property
  def max_samples(self) -> int | None:
    """Longest waveform the encoder takes; None if any."""
    return None

  def num_frames(self, num_samples: int) -> int:
    """T of a waveform of `num_samples` samples, also the number of real frames of such a one in a
    longer batch."""
    raise NotImplementedError

  def frozen(self) -> Self:
    """The same encoder without what acts in training only: dropout, masked spectrograms."""
    return self
