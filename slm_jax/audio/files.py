"""Audio files as 16 kHz mono int16: decoding, resampling, and cutting long recordings into chunks.

Host-side only (NumPy, soundfile, soxr). A file that cannot be used raises `UserError`, one line
that names the file, what was expected and what to do.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from slm_jax.errors import UserError

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768  # int16 steps for a float sample of 1.0

_BLOCK_FRAMES = 1 << 16  # frames decoded at a time: bounds the float copy of a long file
_MIN_RATE, _MAX_RATE = 1_000, 768_000
_MAX_SECONDS = 24 * 3600
_MAX_FLOAT_PEAK = (
  16.0  # +24 dBFS; beyond it a float file holds integers that were never scaled to ±1
)
_STREAMED_SIZES = (
  0,
  0x7FFFFFFF,
  0xFFFFFFFF,
)  # data sizes that a writer to a pipe leaves in a WAV header
_FORMATS = "WAV, FLAC, OGG, MP3 or AIFF"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioInfo:
  """What a file's header says, before any sample is decoded."""

  sample_rate: int
  channels: int
  frames: int
  subtype: str

  @property
  def seconds(self) -> float:
    return self.frames / self.sample_rate


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
  """Reads the header alone. Raises `UserError` for what a header can show to be unusable.

  Samples are not decoded, so non-finite or damaged data is found by `read_audio` only.
  """
  with _open(path) as file:
    return _info(file)


def read_audio(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> np.ndarray:
  """Decodes any file libsndfile knows → int16 `[S]` at `sample_rate` Hz, the mean of its channels.

  Decoded and resampled block by block, so an hour of 48 kHz stereo needs little more than the
  result. A 16-bit mono file already at `sample_rate` is returned bit for bit. Samples beyond full
  scale saturate and never wrap.

  Raises:
    UserError: missing, a directory, unreadable, empty, not audio, damaged or cut off, no samples,
      NaN or infinite samples, or a header outside sensible limits.
  """
  with _open(path) as file:
    info = _info(file)
    blocks = _mono_blocks(path, file, info)
    if info.sample_rate != sample_rate:
      blocks = _resampled(blocks, info.sample_rate, sample_rate)
    pcm = bytearray()  # grows in place: joining a list of blocks would hold the recording twice
    for block in blocks:
      pcm += to_int16(block).tobytes()
  if not pcm:
    raise _zero_samples(path)
  return np.frombuffer(pcm, np.int16)


def to_int16(samples: np.ndarray) -> np.ndarray:
  """Float samples in ±1 (any shape) → int16, rounded to nearest, saturating at full scale."""
  scaled = np.rint(samples * np.asarray(FULL_SCALE, samples.dtype))
  return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def split_audio(
  samples: np.ndarray,
  max_samples: int,
  *,
  search_samples: int | None = None,
  window_samples: int = 1_600,
) -> list[tuple[int, int]]:
  """Cuts int16 `samples` `[S]` into consecutive `(start, stop)` ranges of at most `max_samples`.

  The ranges cover every sample exactly once: a model with a fixed input length must neither lose
  the end of a recording without a word nor hear anything twice. Audio that fits is one range.
  Otherwise each cut lies at the centre of the quietest `window_samples` (100 ms, but at most a
  quarter of the search) within the last `search_samples` before the limit (default a quarter of
  it), where it is least likely to split a word; of equally quiet places the latest is taken, for
  fewer chunks. The last cut leaves at least half of `search_samples`, as a chunk of a few
  milliseconds would only make a model guess.
  Energies are summed in integers, so the cuts are the same on every machine.

  Raises ValueError for a limit below 4 samples or a search range that is not within 2…limit-1.
  """
  if max_samples < 4:
    raise ValueError(f"{max_samples=} must be at least 4")
  search = max(2, max_samples // 4) if search_samples is None else search_samples
  if not 2 <= search < max_samples:
    raise ValueError(
      f"search_samples={search} must be from 2 to {max_samples - 1} ({max_samples=})"
    )
  if window_samples < 1:
    raise ValueError(f"{window_samples=} must be at least 1")
  window = min(window_samples, max(1, search // 4))
  total = len(samples)
  ranges, start = [], 0
  while total - start > max_samples:
    low = start + max_samples - search
    high = min(start + max_samples, total - search // 2)
    cut = low + _quietest(samples[low:high], window)
    ranges.append((start, cut))
    start = cut
  if start < total:
    ranges.append((start, total))
  return ranges


def _quietest(samples: np.ndarray, window: int) -> int:
  """Centre of the last window with the least energy; in 0…len-1."""
  energy = np.concatenate([[0], np.cumsum(samples.astype(np.int64) ** 2)])
  sums = energy[window:] - energy[:-window]
  last = len(sums) - 1 - int(np.argmin(sums[::-1]))
  return last + window // 2


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
  name = _named(path)
  file = pathlib.Path(path)
  try:
    if file.is_dir():
      raise UserError(f"{name} is a directory, expected one audio file; name a file inside it")
    if not file.exists():
      raise UserError(f"{name} does not exist; check the path (relative to {os.getcwd()!r})")
    if not file.is_file():
      raise UserError(f"{name} is not a regular file; save the audio to a file first")
    with open(file, "rb") as raw:
      head = raw.read(64)
  except OSError as error:
    raise UserError(f"{name} cannot be read: {error.strerror}; check its permissions") from error
  if not head:
    raise UserError(f"{name} is empty (0 bytes), expected audio; copy or record it again")
  try:
    # Encoded here: soundfile refuses a str that is not UTF-8, but takes any bytes.
    return soundfile.SoundFile(os.fsencode(file))  # pyright: ignore[reportArgumentType]
  except (soundfile.LibsndfileError, TypeError, ValueError) as error:
    if _is_text(head):
      start = " ".join(head[:24].decode(errors="replace").split())
      message = f"{name} is a text file (begins {start!r}), expected {_FORMATS}; name the audio"
    else:
      message = (
        f"{name} is not audio or is damaged ({_cause(error)}), expected {_FORMATS}; convert it"
      )
    raise UserError(message) from error


def _info(file: soundfile.SoundFile) -> AudioInfo:
  name = _named(file.name)
  if not _MIN_RATE <= file.samplerate <= _MAX_RATE:
    raise UserError(
      f"{name} has an absurd header: {file.samplerate} Hz, expected {_MIN_RATE} to {_MAX_RATE} Hz;"
      " write the file again"
    )
  if file.frames == 0:
    raise _zero_samples(file.name)
  if file.format in ("WAV", "WAVEX"):
    _check_wav_size(file)
  return AudioInfo(
    sample_rate=file.samplerate, channels=file.channels, frames=file.frames, subtype=file.subtype
  )


def _check_wav_size(file: soundfile.SoundFile) -> None:
  """libsndfile shortens a WAV whose data ends early and says so only in its log."""
  found = re.search(r"^\s*data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
  if found is None:
    return
  promised, present = int(found[1]), int(found[2])
  if promised > present and promised not in _STREAMED_SIZES:
    raise UserError(
      f"{_named(file.name)} is cut off: its header promises {promised} bytes of audio and {present}"
      " are there; copy it again"
    )


def _mono_blocks(
  path: str | os.PathLike[str], file: soundfile.SoundFile, info: AudioInfo
) -> Iterator[np.ndarray]:
  """Yields float32 `[frames]`, the mean of the channels, checked for damage."""
  name, read = _named(path), 0
  is_float = info.subtype in ("FLOAT", "DOUBLE")
  while True:
    try:
      block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
      raise UserError(
        f"{name} is damaged after {read / info.sample_rate:.1f} s ({_cause(error)}), expected"
        f" {info.seconds:.1f} s; copy or convert it again"
      ) from error
    if not len(block):
      break
    if not np.isfinite(block).all():
      at = (read + int(np.argmin(np.isfinite(block).all(axis=1)))) / info.sample_rate
      raise UserError(f"{name} holds NaN or infinite samples at {at:.3f} s; write it again")
    if is_float and (peak := float(np.abs(block).max())) > _MAX_FLOAT_PEAK:
      raise UserError(
        f"{name} holds float samples up to {peak:.6g}, expected ±1; divide them by their full scale"
      )
    read += len(block)
    if read > _MAX_SECONDS * info.sample_rate:
      raise UserError(f"{name} is longer than {_MAX_SECONDS // 3600} h; cut it into several files")
    yield block.mean(axis=1)
  # MP3 headers state estimates; every other format states the count.
  if read < info.frames and file.format != "MP3":
    raise UserError(
      f"{name} is cut off or has an absurd header: {read} of {info.frames} samples are there;"
      " copy or convert it again"
    )


def _resampled(blocks: Iterator[np.ndarray], source: int, target: int) -> Iterator[np.ndarray]:
  stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
  for block in blocks:
    yield stream.resample_chunk(block)
  yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _zero_samples(path: str | os.PathLike[str] | int) -> UserError:
  return UserError(f"{_named(path)} holds no audio samples; record or export it again")


def _named(path) -> str:
  return f"audio file {os.fsdecode(path)!r}"


def _cause(error: Exception) -> str:
  return " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")


def _is_text(head: bytes) -> bool:
  if b"\0" in head:
    return False
  text = head.decode("utf-8", errors="ignore")
  return len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in text)
