"""What a caller hands to an encoder, looked at before it is compiled for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# +24 dBFS; beyond it floats are integers that were never scaled to ±1.
_MAX_FLOAT_PEAK = 16.0


def checked_audio(audio: Any, lengths: Any) -> tuple[jax.Array, jax.Array]:
  """A batch of waveforms as the encoders take it.

  Args:
    audio: int16, or float in [-1, 1], [B, S], on the host or a device.
    lengths: whole numbers [B], 0 … S, on the host or a device.

  Returns:
    (audio as it was, lengths int32 [B]), on the device.

  Raises:
    ValueError: one line: another shape or type, a length outside 0 … S, samples within the lengths that
      are NaN, infinite or beyond ±16. Values on a device are not looked at: that would wait for it.
  """
  audio = audio if isinstance(audio, jax.Array) else np.asarray(audio)
  lengths = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
  if audio.ndim != 2 or not all(audio.shape):
    raise ValueError(f"audio is {list(audio.shape)}, expected [B, S], neither of them 0")
  if audio.dtype != np.int16 and not jnp.issubdtype(audio.dtype, jnp.floating):
    raise ValueError(f"audio is {audio.dtype}, expected int16, or float in [-1, 1]")
  if lengths.shape != audio.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
    raise ValueError(
      f"lengths are {lengths.dtype} {list(lengths.shape)}, expected whole numbers [{len(audio)}], in samples"
    )
  if isinstance(lengths, np.ndarray):
    _check_lengths(lengths, audio.shape[1])
    if isinstance(audio, np.ndarray) and audio.dtype != np.int16:
      for row, length in enumerate(lengths):
        _check_peak(row, audio[row, :length])
  return jnp.asarray(audio), jnp.asarray(lengths, jnp.int32)


def _check_lengths(lengths: np.ndarray, num_samples: int) -> None:
  wrong = np.flatnonzero((lengths < 0) | (lengths > num_samples))
  if wrong.size:
    row = int(wrong[0])
    raise ValueError(f"lengths[{row}] is {lengths[row]}, expected 0 to S = {num_samples}")


def _check_peak(row: int, samples: np.ndarray) -> None:
  """Of float samples that an encoder hears."""
  peak = float(np.abs(samples).max(initial=0.0))
  if not peak <= _MAX_FLOAT_PEAK:  # NaN is not
    raise ValueError(
      f"audio[{row}] reaches {peak:g}, expected float samples in [-1, 1]; divide what came as int16 by 32768"
    )
