"""The audio of a record: a path, the bytes of a file, or samples, as 16 kHz PCM16."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.audio.files import SAMPLE_RATE, convert_samples, decode_audio, probe_audio, read_audio
from slm_jax.data.record_columns import BadRecord, Columns, is_missing, number_of, value_of
from slm_jax.data.record_tables import AUDIO_SUFFIXES

# How far a stated duration may be off: re-encoding pads and rounds, a wrong rate is 8 % or more.
_DURATION_SHARE, _DURATION_SECONDS = 0.04, 0.15
_LONGEST_PATH = 4096
_AUDIO = (str, bytes, list, tuple, np.ndarray)
_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"RF64")


def audio_of(
  record: Mapping[str, Any], columns: Columns, folder: Path, sample_rate: int | None
) -> np.ndarray:
  """int16 `[S]` at 16 kHz of a record's audio column.

  The column holds the path of a file (relative to `folder`), a file's bytes, samples (PCM16
  integers, PCM16 bytes, or floats in ±1; their rate is the record's, or `sample_rate`, in Hz), or
  what the `datasets` library makes of them: `{"bytes", "path"}`, `{"array", "sampling_rate"}`.

  Raises:
    BadRecord: there is no audio, its rate is not stated, or it contradicts the record's sample rate
      or duration.
    UserError: it cannot be decoded.
  """
  value = value_of(record, columns.audio)
  stated = number_of(record, columns.sample_rate)
  if isinstance(value, Mapping):
    if value.get("array") is not None:
      stated = number_of(value, "sampling_rate") or stated
      value = value["array"]
    else:
      value = value.get("bytes") or value.get("path")
  if isinstance(value, bytes) and _is_path(value):
    value = os.fsdecode(value)
  if is_missing(value) or (isinstance(value, _AUDIO) and len(value) == 0):
    raise BadRecord(f"field {columns.audio!r} is missing or empty; there are {sorted(record)}")
  if not isinstance(value, _AUDIO):
    raise BadRecord(
      f"field {columns.audio!r} is {type(value).__name__}, expected a path, a file's bytes or samples"
    )
  rate = stated or sample_rate
  if isinstance(value, str):
    path = folder / value
    samples = read_audio(path)
    if stated and (found := probe_audio(path).sample_rate) != stated:
      raise BadRecord(
        f"sample rate mislabelled: the record states {stated:g} Hz, audio file '{path}' {found} Hz"
      )
  elif isinstance(value, bytes) and _is_file(value):
    samples = decode_audio(value, "its audio")
  elif rate is None:
    raise BadRecord("its audio is samples of an unknown rate; give sample_rate")
  else:
    if isinstance(value, bytes):
      if len(value) % 2:
        raise BadRecord(f"its audio is {len(value)} bytes, neither a known format nor PCM16")
      value = np.frombuffer(value, "<i2")
    samples = convert_samples(_numbers(value), round(rate), "its audio")
  _check_duration(number_of(record, columns.duration), len(samples) / SAMPLE_RATE)
  return samples


def _numbers(samples: Sequence[Any] | np.ndarray) -> np.ndarray:
  try:
    found = np.asarray(samples)
  except ValueError:  # lists of different lengths in a list
    found = np.asarray(None)
  if found.dtype.kind not in "iuf":
    raise BadRecord("its audio is a list of other things than samples; expected numbers")
  return found


def _check_duration(stated: float | None, found: float) -> None:
  if stated and abs(found - stated) > max(_DURATION_SECONDS, _DURATION_SHARE * stated):
    raise BadRecord(
      f"the record states {stated:.2f} s of audio, there are {found:.2f} s: its sample rate is "
      "mislabelled, or it was cut"
    )


def _is_file(value: bytes) -> bool:
  mp3_frame = value[0] == 0xFF and value[1:2] >= b"\xe0"
  return value.startswith(_MAGIC) or value[4:8] == b"ftyp" or mp3_frame


def _is_path(value: bytes) -> bool:
  """A format without text of its own, such as tf.train.Example, gives paths as bytes."""
  return len(value) <= _LONGEST_PATH and value.lower().endswith(
    tuple(suffix.encode() for suffix in AUDIO_SUFFIXES)
  )
