"""Which of the examples that wait share a row of the LM.

An example takes positions of the LM's encoder (speech after length reduction, instruction) and of its
decoder (targets); a row has declared lengths for both, which no row may exceed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax.batch import LMRows

# Keys of a length bucket that declare its rows of the LM.
LM_INPUTS, LM_TARGETS = "lm_inputs", "lm_targets"
LM_LENGTHS = (LM_INPUTS, LM_TARGETS)
# Examples that wait beyond those of a batch, for each in a row: a choice of sizes fills rows better.
CHOICE = 2

# (samples, samples of the longest in the batch) -> positions of the LM's encoder that this speech
# takes at most.
SpeechPositions = Callable[[int, int], int]


def lm_rows_of(bucket: Mapping[str, int], examples: int) -> LMRows | None:
  """The declared rows of a bucket; None where each example has its own."""
  if examples == 1:
    return None
  return LMRows(examples, int(bucket[LM_INPUTS]), int(bucket[LM_TARGETS]))


def check(
  buckets: Sequence[Mapping[str, int]], examples: int, speech_positions: SpeechPositions
) -> None:
  """Raises ValueError unless any one example of a bucket fits into its rows.

  Args:
    buckets: declared lengths.
    examples: that share a row.
    speech_positions: of the model.
  """
  if examples == 1:
    return
  for bucket in buckets:
    speech = speech_positions(bucket["audio"], bucket["audio"]) if "audio" in bucket else 0
    needed = speech + bucket.get("inputs", 0), bucket.get("targets", 0)
    for name, least in zip(LM_LENGTHS, needed, strict=True):
      if not least <= bucket[name] <= examples * least:
        raise ValueError(
          f"length_buckets: {name}={bucket[name]} of {dict(bucket)}: expected {least}, for its longest "
          f"example alone, to {examples * least}, for {examples} such"
        )


def positions(
  row: Mapping[str, Any], bucket: Mapping[str, int], speech_positions: SpeechPositions
) -> tuple[int, int]:
  """Positions of the LM's encoder and decoder that an example without padding takes at most."""
  speech = 0
  if "audio" in bucket:
    speech = speech_positions(int(row["audio_lengths"]), bucket["audio"])
  return speech + len(row["encoder_input_tokens"]), len(row["decoder_target_tokens"])


def fill(
  sizes: np.ndarray, limits: Sequence[int], examples: int, num_rows: int
) -> list[int | None]:
  """Chooses examples for rows, each of which begins with the first that is left.

  Those that follow are such that the room that is left suits as many as are missing: neither too
  long, nor so short that the row ends half empty.

  Args:
    sizes: int [N, 2], positions as of `positions`, each within the limits.
    limits: of a row.
    examples: K, of a row.
    num_rows: R.

  Returns:
    R x K indices of `sizes`, row by row; None where none that is left fits.
  """
  left, chosen = list(range(len(sizes))), []
  for _ in range(num_rows):
    room = np.asarray(limits)
    for missing in range(examples, 0, -1):
      waiting = sizes[left]
      fits = (waiting <= room).all(axis=1)
      if not fits.any():
        chosen.append(None)
        continue
      misfit = np.abs(waiting * missing / np.maximum(room, 1) - 1).max(axis=1)
      place = 0 if missing == examples else int(np.where(fits, misfit, np.inf).argmin())
      room = room - waiting[place]
      chosen.append(left.pop(place))
  return chosen
