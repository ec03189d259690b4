"""`Batch`: the only seam between the data and the model."""

import dataclasses
from typing import Any

import numpy as np
from flax import struct

# Arrays are NumPy on the host and jax.Array on the device; None marks a field that a run does not use.
ArrayLike = Any


@dataclasses.dataclass(frozen=True)
class LMRows:
  """How examples share rows of the LM: each `examples` neighbours of a batch are one row.

  Attributes:
    examples: in a row.
    inputs: positions of a row of the LM's encoder (speech and instruction).
    targets: positions of a row of its decoder.
  """

  examples: int
  inputs: int
  targets: int


@struct.dataclass
class Batch:
  """One batch of examples. B batch, S samples, P prompt length, T target length.

  Text-only batches have no audio; recognition-only (CTC) batches have no `encoder_input_tokens`.
  """

  # int16 [B, S], 16 kHz mono PCM; samples at and past `audio_lengths` are padding of any content.
  audio: ArrayLike | None = None
  # int32 [B], real samples of each row; 0 marks a padding row.
  audio_lengths: ArrayLike | None = None
  # float [B, T, E] in place of audio: its frames from the frozen part of the model, padding 0.
  speech_frames: ArrayLike | None = None
  # int32 [B], real frames of each row.
  speech_frame_lengths: ArrayLike | None = None
  # int32 [B, P], the text the LM's encoder reads (with speech: the instruction and its context), EOS last, pad 0.
  encoder_input_tokens: ArrayLike | None = None
  # int32 [B, T], targets shifted right by one; the start token is the pad id 0.
  decoder_input_tokens: ArrayLike | None = None
  # int32 [B, T], target tokens with EOS last, pad 0.
  decoder_target_tokens: ArrayLike | None = None
  # float32 [B, T], 1 where a target token counts in the loss, 0 on padding.
  decoder_loss_weights: ArrayLike | None = None
  # Of the declared shape, known when a step is compiled; None gives each example a row of its own. What shares a row
  # fits into it: whoever forms the batch sees to that.
  lm_rows: LMRows | None = struct.field(pytree_node=False, default=None)

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> "Batch":
    """Builds a batch from named fields; raises TypeError on a name that is not one."""
    return cls(**fields)

  @property
  def size(self) -> int:
    """Number of rows B."""
    return self.decoder_target_tokens.shape[0]  # pyright: ignore[reportOptionalMemberAccess]

  @classmethod
  def fake(
    cls,
    *,
    batch_size: int,
    num_samples: int,
    prompt_length: int,
    target_length: int,
    vocab_size: int,
    seed: int = 0,
  ) -> "Batch":
    """Random noise and random tokens of a run's shapes: what a box without any data trains on."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, vocab_size, (batch_size, target_length)).astype(np.int32)
    lengths = rng.integers(max(1, target_length // 2), target_length + 1, batch_size)
    weights = np.arange(target_length) < lengths[:, None]
    targets = np.where(weights, targets, 0)
    return cls(
      audio=rng.integers(-3000, 3000, (batch_size, num_samples)).astype(np.int16),
      audio_lengths=rng.integers(num_samples // 2, num_samples + 1, batch_size).astype(np.int32),
      encoder_input_tokens=rng.integers(3, vocab_size, (batch_size, prompt_length)).astype(
        np.int32
      ),
      decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      decoder_target_tokens=targets,
      decoder_loss_weights=weights.astype(np.float32),
    )
