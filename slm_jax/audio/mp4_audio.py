"""Audio of MP4 files (.m4a, .mp4, .mov), which libsndfile does not read: decoding through PyAV."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from slm_jax.errors import UserError

# A file may state a little more than it holds: an encoder's padding.
_MISSING_SECONDS = 0.2


def is_mp4(head: bytes) -> bool:
  """Whether a file's first bytes are those of an ISO base media file."""
  return head[4:8] == b"ftyp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mp4Stream:
  """The first audio stream of an open file."""

  container: Any
  name: str
  codec: str
  sample_rate: int
  channels: int
  seconds: float

  def mono_blocks(self) -> Iterator[np.ndarray]:
    """Yields float32 `[frames]`, the mean of the channels.

    Raises UserError where the file is damaged or ends before the length that it states.
    """
    import av
    from av.error import FFmpegError

    resampler = av.AudioResampler(format="fltp", rate=self.sample_rate)
    read = 0
    try:
      for frame in self.container.decode(audio=0):
        for part in resampler.resample(frame):
          block = part.to_ndarray().astype(np.float32, copy=False)
          read += block.shape[1]
          yield block.mean(axis=0)
    except (FFmpegError, ValueError) as error:
      raise UserError(
        f"{self.name} is damaged after {read / self.sample_rate:.1f} s ({_cause(error)}), expected "
        f"{self.seconds:.1f} s; copy or convert it again"
      ) from error
    if read / self.sample_rate < self.seconds - _MISSING_SECONDS:
      raise UserError(
        f"{self.name} is cut off: {read / self.sample_rate:.1f} of {self.seconds:.1f} s are there; "
        "copy or convert it again"
      )


@contextlib.contextmanager
def open_stream(file: str | os.PathLike[str] | io.BytesIO, name: str) -> Iterator[Mp4Stream]:
  """Opens a path or a file's content; `name` is what errors call it.

  Raises UserError: PyAV is not installed, or there is no audio stream to be read.
  """
  try:
    import av
    from av import logging
    from av.error import FFmpegError
  except ImportError as error:
    raise UserError(
      f"{name} is MP4 audio, which needs PyAV; pip install 'slm_jax[m4a]' or convert it to FLAC"
    ) from error
  logging.set_level(logging.PANIC)  # damage is reported once, by the error
  try:
    container = av.open(file if isinstance(file, io.BytesIO) else os.fspath(file))
  except (FFmpegError, ValueError) as error:
    raise UserError(
      f"{name} is not audio or is damaged ({_cause(error)}), expected M4A; convert it"
    ) from error
  with container:
    if not container.streams.audio:
      raise UserError(f"{name} holds no audio stream; name a file with sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
      raise UserError(f"{name} is coded in a way that PyAV does not know; convert it")
    ticks = stream.duration or 0
    yield Mp4Stream(
      container=container,
      name=name,
      codec=stream.codec_context.name.upper(),
      sample_rate=stream.codec_context.sample_rate,
      channels=stream.codec_context.channels,
      seconds=float(ticks * stream.time_base) if stream.time_base else 0.0,
    )


def _cause(error: Exception) -> str:
  return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
