"""Audio of any length through a speech encoder, in windows that overlap.

Every window is encoded with `context` samples on each side, whose frames are then dropped, so what
is kept was computed from about the same surroundings as in one pass over the whole. Memory depends on
the window and not on the length.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPart:
  """Frames of a stretch of audio, on the host.

  Attributes:
    start: sample at which the stretch begins.
    frames: [N, D].
    ctc_logits: fp32 [N, V], or None without a CTC head.
  """

  start: int
  frames: np.ndarray
  ctc_logits: np.ndarray | None


def window_lengths(
  config: SpeechEncoderConfig, *, keep_seconds: float, context_seconds: float
) -> tuple[int, int]:
  """(kept, context) samples of a window, rounded up to what keeps frames in step, at least one frame.

  Raises:
    ValueError: a window is nothing, or longer than the encoder takes.
  """
  unit = config.window_unit
  kept, context = (
    -(-round(seconds * SAMPLE_RATE) // unit) * unit for seconds in (keep_seconds, context_seconds)
  )
  # Frontends without padding make no frame of a window's last samples: one frame more must be there.
  context = max(context, unit)
  if keep_seconds <= 0 or context_seconds < 0:
    raise ValueError(
      f"keep_seconds={keep_seconds}, context_seconds={context_seconds}: expected more than 0, and 0 or more"
    )
  if config.max_samples is not None and kept + 2 * context > config.max_samples:
    raise ValueError(
      f"keep_seconds={keep_seconds} and twice context_seconds={context_seconds} are "
      f"{kept + 2 * context} samples, the encoder takes {config.max_samples}; lower one of them"
    )
  return kept, context


def encode_in_windows(
  encode: Callable[[np.ndarray, np.ndarray], SpeechEncoderOutput],
  config: SpeechEncoderConfig,
  audio: np.ndarray,
  *,
  kept: int,
  context: int,
) -> Iterator[EncodedPart]:
  """Encodes one waveform, window after window, every one of the same shape.

  Args:
    encode: maps audio [1, S] and lengths [1] to an encoder's output.
    config: of the encoder.
    audio: [S], int16 or float.
    kept, context: samples of a window, of `window_lengths`.

  Yields:
    Parts in order; together they have config.num_frames(S) frames.
  """
  total = len(audio)
  size = kept + 2 * context
  num_frames = config.num_frames(total)
  done = 0
  for start in range(0, max(total, 1), kept):
    first = max(0, start - context)
    window = audio[first : first + size]
    padded = np.zeros((1, size), audio.dtype)
    padded[0, : len(window)] = window
    out = encode(padded, np.array([len(window)], np.int32))
    # Near its end a waveform may have fewer frames than its samples would fill.
    wanted = num_frames - done
    if start + kept < total:
      wanted = min(wanted, kept // config.frame_samples)
    skip = (start - first) // config.frame_samples
    frames, logits = jax.device_get((out.frames, out.ctc_logits))
    part = slice(skip, skip + wanted)
    yield EncodedPart(
      start=start, frames=frames[0, part], ctc_logits=None if logits is None else logits[0, part]
    )
    done += wanted
