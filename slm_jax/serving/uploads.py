"""Audio that clients send: any format that the product reads, within limits, never trusted."""

import base64
import binascii
import os
import tempfile
from typing import Any

import numpy as np

from slm_jax.audio.files import SAMPLE_RATE, probe_audio, read_audio
from slm_jax.errors import UserError
from slm_jax.serving.errors import BadRequest

# Names of files that decoders go by; anything else is told by its content.
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".aiff")


def decode_audio(data: Any, name: str, *, max_seconds: float) -> np.ndarray:
  """int16 [S] at 16 kHz of a file's bytes, or of an open file.

  The header is read first: what is too long is not decoded.

  Raises:
    BadRequest: no audio, damaged, silent of samples, or too long.
  """
  suffix = os.path.splitext(name)[1].lower()
  with tempfile.NamedTemporaryFile(suffix=suffix if suffix in _SUFFIXES else "") as file:
    content = data if isinstance(data, bytes) else data.read()
    file.write(content)
    file.flush()
    try:
      seconds = probe_audio(file.name).seconds
      if seconds <= max_seconds:
        samples = read_audio(file.name)
        seconds = len(samples) / SAMPLE_RATE
    except UserError as error:
      text = (
        str(error).replace(f"audio file {file.name!r}", "the file").replace(file.name, "the file")
      )
      raise BadRequest(text, param="file", code="invalid_audio") from error
  if seconds > max_seconds:
    raise BadRequest(
      f"the audio is {seconds:.1f} s long, longer than the {max_seconds:g} s that this server takes",
      param="file",
      code="audio_too_long",
    )
  return samples


def decode_base64(text: str) -> bytes:
  """Raises BadRequest for what is not base64."""
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise BadRequest(f"input_audio.data is not base64: {error}", param="messages") from error
