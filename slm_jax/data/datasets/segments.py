"""Utterances cut out of long recordings."""

import io
from collections.abc import Sequence

import numpy as np
import soundfile

from slm_jax.audio.files import SAMPLE_RATE

# Annotations are rounded, and decoders differ in the padding they leave.
TOLERANCE_SECONDS = 0.5


class BadSegment(Exception):
  """A segment that does not lie in its recording; the text says why."""


def cut(samples: np.ndarray, spans: Sequence[tuple[float, float]]) -> np.ndarray:
  """The spans (start and end in seconds) of 16 kHz samples `[S]`, one after the other.

  Raises:
    BadSegment: no span, one without length, or one that ends behind the recording.
  """
  if not spans:
    raise BadSegment("no time is given")
  seconds = len(samples) / SAMPLE_RATE
  parts = []
  for start, end in spans:
    if not 0 <= start < end:
      raise BadSegment(f"from {start} s to {end} s is no segment")
    if end > seconds + TOLERANCE_SECONDS:
      raise BadSegment(f"ends at {end} s, its recording at {seconds:.2f} s")
    parts.append(samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)])
  found = np.concatenate(parts)
  if not len(found):
    raise BadSegment(f"begins at {spans[0][0]} s, where its recording ends")
  return found


def encode_flac(samples: np.ndarray) -> bytes:
  """int16 samples `[S]` at 16 kHz as the content of a FLAC file."""
  file = io.BytesIO()
  soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
  return file.getvalue()
