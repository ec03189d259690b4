"""Audio files as 16 kHz mono int16: decoding, resampling, and cutting long recordings into chunks.

Host-side only (NumPy, soundfile, soxr; PyAV for MP4). A file that cannot be used raises `UserError`,
one line that names the file, what was expected and what to do.
"""

import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from slm_jax.audio import mp4_audio
from slm_jax.errors import UserError

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768  # int16 steps for a float sample of 1.0

_BLOCK_FRAMES = 1 << 16  # frames decoded at a time: bounds the float copy of a long file
_HEAD_BYTES = 4096
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
_FORMATS = "WAV, FLAC, OGG, MP3, M4A or AIFF"


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
  name, head = _named(path), _head(path)
  if mp4_audio.is_mp4(head):
    with mp4_audio.open_stream(os.fspath(path), name) as stream:
      return AudioInfo(
        sample_rate=stream.sample_rate,
        channels=stream.channels,
        frames=round(stream.seconds * stream.sample_rate),
        subtype=stream.codec,
      )
  with _sound_file(os.fsencode(path), head, name) as file:
    return _info(file, name)


def read_audio(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> np.ndarray:
  """Decodes a file (WAV, FLAC, Ogg, MP3, AIFF, M4A) → int16 `[S]`, the mean of its channels.

  `sample_rate` is that of the result, in Hz. Decoded and resampled block by block, so an hour of 48
  kHz stereo needs little more than the result. A 16-bit mono file already at `sample_rate` is
  returned bit for bit. Samples beyond full scale saturate and never wrap.

  Raises:
    UserError: missing, a directory, unreadable, empty, not audio, damaged or cut off, no samples,
      NaN or infinite samples, or a header outside sensible limits.
  """
  return _decode(path, _head(path), _named(path), sample_rate)


def decode_audio(data: bytes, name: str, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
  """As `read_audio`, of a file's content; `name` is what errors call it."""
  if not data:
    raise UserError(f"{name} is empty (0 bytes), expected audio; write the record again")
  return _decode(io.BytesIO(data), data[:_HEAD_BYTES], name, sample_rate)


def convert_samples(
  samples: np.ndarray, source_rate: int, name: str, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
  """Samples that are decoded already → int16 `[S]` at `sample_rate`, as `read_audio` makes them.

  Args:
    samples: `[s]`; integers are PCM16 values, floats in ±1.
    source_rate: of `samples`, in Hz.
    name: what errors call them.

  Raises:
    UserError: no samples, not one axis, integers beyond int16, NaN, infinite or unscaled floats, or
      a rate outside sensible limits.
  """
  if samples.ndim != 1:
    raise UserError(f"{name} has shape {list(samples.shape)}, expected one axis of samples")
  if not samples.size:
    raise _zero_samples(name)
  _check_rate(source_rate, name)
  if np.issubdtype(samples.dtype, np.integer):
    if samples.min() < -FULL_SCALE or samples.max() >= FULL_SCALE:
      raise UserError(f"{name} holds integers beyond int16; write PCM16 or floats in ±1")
    if source_rate == sample_rate:
      return samples.astype(np.int16)
    block = samples.astype(np.float32) / FULL_SCALE
  else:
    block = samples.astype(np.float32)
    _check_finite(block, 0, source_rate, name)
    _check_scale(block, name)
  return _pcm16(iter([block]), source_rate, name, sample_rate)


def to_int16(samples: np.ndarray) -> np.ndarray:
  """Float samples in ±1 (any shape) → int16, rounded to nearest, saturating at full scale."""
  scaled = np.asarray(samples * np.asarray(FULL_SCALE, samples.dtype))
  np.rint(scaled, out=scaled)
  np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1, out=scaled)
  return scaled.astype(np.int16)


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


def _decode(
  file: str | os.PathLike[str] | io.BytesIO, head: bytes, name: str, sample_rate: int
) -> np.ndarray:
  """`file` is a path or a file's content, `head` the first bytes of it."""
  if mp4_audio.is_mp4(head):
    with mp4_audio.open_stream(file, name) as stream:
      _check_rate(stream.sample_rate, name)
      return _pcm16(stream.mono_blocks(), stream.sample_rate, name, sample_rate)
  # Encoded here: soundfile refuses a str that is not UTF-8, but takes any bytes.
  source = file if isinstance(file, io.BytesIO) else os.fsencode(file)
  with _sound_file(source, head, name) as sound:
    info = _info(sound, name)
    missing = _tolerated_loss(sound, head)
    as_it_is = (info.subtype, info.channels, info.sample_rate) == ("PCM_16", 1, sample_rate)
    blocks = _mono_blocks(name, sound, info, missing, "int16" if as_it_is else "float32")
    return _pcm16(blocks, info.sample_rate, name, sample_rate)


def _pcm16(
  blocks: Iterator[np.ndarray], source_rate: int, name: str, sample_rate: int
) -> np.ndarray:
  """Joins float32 blocks `[frames]`, resampled, as int16 `[S]`; int16 blocks as they are."""
  if source_rate != sample_rate:
    blocks = _resampled(blocks, source_rate, sample_rate)
  pcm = bytearray()  # grows in place: joining a list of blocks would hold the recording twice
  for block in blocks:
    pcm += (block if block.dtype == np.int16 else to_int16(block)).tobytes()
    if len(pcm) // 2 > _MAX_SECONDS * sample_rate:
      raise UserError(f"{name} is longer than {_MAX_SECONDS // 3600} h; cut it into several files")
  if not pcm:
    raise _zero_samples(name)
  return np.frombuffer(pcm, np.int16)


def _head(path: str | os.PathLike[str]) -> bytes:
  """The first bytes of a file; raises UserError if there are none to be had."""
  name, file = _named(path), pathlib.Path(path)
  try:
    if file.is_dir():
      raise UserError(f"{name} is a directory, expected one audio file; name a file inside it")
    if not file.exists():
      raise UserError(f"{name} does not exist; check the path (relative to {os.getcwd()!r})")
    if not file.is_file():
      raise UserError(f"{name} is not a regular file; save the audio to a file first")
    with open(file, "rb") as raw:
      head = raw.read(_HEAD_BYTES)
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{name} cannot be read: {reason}; check its permissions") from error
  if not head:
    raise UserError(f"{name} is empty (0 bytes), expected audio; copy or record it again")
  return head


def _sound_file(source: bytes | io.BytesIO, head: bytes, name: str) -> soundfile.SoundFile:
  try:
    return soundfile.SoundFile(source)  # pyright: ignore[reportArgumentType]
  except (soundfile.LibsndfileError, TypeError, ValueError) as error:
    if _is_text(head[:64]):
      start = " ".join(head[:24].decode(errors="replace").split())
      message = f"{name} is a text file (begins {start!r}), expected {_FORMATS}; name the audio"
    else:
      message = (
        f"{name} is not audio or is damaged ({_cause(error)}), expected {_FORMATS}; convert it"
      )
    raise UserError(message) from error


def _info(file: soundfile.SoundFile, name: str) -> AudioInfo:
  _check_rate(file.samplerate, name)
  if file.frames == 0:
    raise _zero_samples(name)
  if file.format in ("WAV", "WAVEX"):
    _check_wav_size(file, name)
  return AudioInfo(
    sample_rate=file.samplerate, channels=file.channels, frames=file.frames, subtype=file.subtype
  )


def _check_rate(rate: int, name: str) -> None:
  if not _MIN_RATE <= rate <= _MAX_RATE:
    raise UserError(
      f"{name} has an absurd header: {rate} Hz, expected {_MIN_RATE} to {_MAX_RATE} Hz; write the"
      " file again"
    )


def _check_wav_size(file: soundfile.SoundFile, name: str) -> None:
  """libsndfile shortens a WAV whose data ends early and says so only in its log."""
  found = re.search(r"^\s*data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
  if found is None:
    return
  promised, present = int(found[1]), int(found[2])
  if promised > present and promised not in _STREAMED_SIZES:
    raise UserError(
      f"{name} is cut off: its header promises {promised} bytes of audio and {present}"
      " are there; copy it again"
    )


def _tolerated_loss(file: soundfile.SoundFile, head: bytes) -> float:
  """Frames that may be missing of those that the header states."""
  if file.format != "MP3":
    return 0
  # The length of an MP3 is an estimate, unless the encoder has left it in a Xing or Info tag, which
  # stands in the first frame, after an ID3 tag whose size is four times seven bits.
  start = 0
  if head[:3] == b"ID3":
    start = 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
  first = head[start : start + 200]
  return 0.2 * file.samplerate if b"Xing" in first or b"Info" in first else np.inf


def _mono_blocks(
  name: str, file: soundfile.SoundFile, info: AudioInfo, tolerated_loss: float, dtype: str
) -> Iterator[np.ndarray]:
  """Yields `[frames]` of `dtype`, float32 the mean of the channels, checked for damage.

  A block is good until the next is asked for: all are read into the same memory.
  """
  read = 0
  memory = np.empty((min(_BLOCK_FRAMES, info.frames), info.channels), dtype)
  is_float = info.subtype in ("FLOAT", "DOUBLE")
  is_integer = info.subtype.startswith("PCM")  # FLAC's too; what is not finite cannot be in it
  while True:
    try:
      block = file.read(out=memory)
    except soundfile.LibsndfileError as error:
      raise UserError(
        f"{name} is damaged after {read / info.sample_rate:.1f} s ({_cause(error)}), expected"
        f" {info.seconds:.1f} s; copy or convert it again"
      ) from error
    if not len(block):
      break
    if not is_integer:
      _check_finite(block, read, info.sample_rate, name)
    if is_float:
      _check_scale(block, name)
    read += len(block)
    yield _mean_channel(block)
  if read < info.frames - tolerated_loss:
    raise UserError(
      f"{name} is cut off or has an absurd header: {read} of {info.frames} samples are there;"
      " copy or convert it again"
    )


def _mean_channel(block: np.ndarray) -> np.ndarray:
  """Mean of samples `[frames, channels]`; those of one channel are not copied."""
  if block.shape[1] == 1:
    return block[:, 0]
  # Channel by channel: NumPy's mean over so short an axis takes ten times as long.
  total = block[:, 0].copy()
  for channel in block.T[1:]:
    total += channel
  return total / np.float32(block.shape[1])


def _check_finite(block: np.ndarray, before: int, rate: int, name: str) -> None:
  """Raises UserError for samples `[frames, …]`, after `before` others, that are not finite."""
  finite = np.isfinite(block)
  if not finite.all():
    finite = finite.reshape(len(block), -1).all(axis=1)
    at = (before + int(np.argmin(finite))) / rate
    raise UserError(f"{name} holds NaN or infinite samples at {at:.3f} s; write it again")


def _check_scale(block: np.ndarray, name: str) -> None:
  if (peak := float(np.abs(block).max())) > _MAX_FLOAT_PEAK:
    raise UserError(
      f"{name} holds float samples up to {peak:.6g}, expected ±1; divide them by their full scale"
    )


def _resampled(blocks: Iterator[np.ndarray], source: int, target: int) -> Iterator[np.ndarray]:
  stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
  for block in blocks:
    yield stream.resample_chunk(block)
  yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _zero_samples(name: str) -> UserError:
  return UserError(f"{name} holds no audio samples; record or export it again")


def _named(path) -> str:
  return f"audio file {os.fsdecode(path)!r}"


def _cause(error: Exception) -> str:
  return " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")


def _is_text(head: bytes) -> bool:
  if b"\0" in head:
    return False
  text = head.decode("utf-8", errors="ignore")
  return len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in text)
