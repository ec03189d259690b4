"""Frames of utterances in files, found by a hash of the audio that they were made from.

A store is a folder of parts. `part-*.array_record` holds one record an utterance, its frames' bytes;
`part-*.npy` beside it the keys in the same order. A part without its keys was never finished and is
not read.
"""

import functools
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from slm_jax.errors import UserError

KEY_BYTES = 16
# A part is closed at either; what an interrupted writer loses is at most one part.
PART_RECORDS, PART_BYTES = 4096, 2**28
_READERS_OPEN = 256
_THREADS = 8


def audio_key(audio: np.ndarray) -> bytes:
  """BLAKE2b of int16 samples [S], 16 bytes."""
  assert audio.dtype == np.int16
  return hashlib.blake2b(np.ascontiguousarray(audio).data, digest_size=KEY_BYTES).digest()


class FrameStore:
  """Reads the finished parts of a store."""

  def __init__(self, folder: Path, *, width: int, dtype: np.dtype):
    """Reads the keys; frames are [T, width] of `dtype`.

    Raises:
      UserError: a part is damaged; the message names it.
    """
    self._width, self._dtype = width, dtype
    self._parts = [path.with_suffix(".array_record") for path in sorted(folder.glob("part-*.npy"))]
    keys = [_part_keys(path) for path in self._parts]
    lengths = [len(one) for one in keys]
    halves = np.concatenate([np.zeros((0, 2), np.uint64), *keys])
    self._order = np.argsort(halves[:, 0], kind="stable")
    self._keys = halves[self._order]
    self._part_of = np.repeat(np.arange(len(keys)), lengths)[self._order]
    self._record_of = np.concatenate([np.zeros(0, np.int64), *map(np.arange, lengths)])[self._order]
    self._reader = functools.lru_cache(_READERS_OPEN)(_reader)
    self._threads = ThreadPoolExecutor(_THREADS)

  def __len__(self) -> int:
    return len(self._keys)

  def __contains__(self, key: bytes) -> bool:
    return self._find(key) is not None

  def read(self, keys: Sequence[bytes]) -> list[np.ndarray]:
    """Frames [T, width] of each key.

    Raises:
      KeyError: of the first key that is not there.
      UserError: a part is damaged; the message names it.
    """
    places = [self._find(key) for key in keys]
    for key, place in zip(keys, places, strict=True):
      if place is None:
        raise KeyError(key)
    return list(self._threads.map(self._read, places))

  def _find(self, key: bytes) -> int | None:
    first, second = np.frombuffer(key, np.uint64)
    place = int(np.searchsorted(self._keys[:, 0], first))
    while place < len(self._keys) and self._keys[place, 0] == first:
      if self._keys[place, 1] == second:
        return place
      place += 1
    return None

  def _read(self, place: int) -> np.ndarray:
    path = self._parts[self._part_of[place]]
    try:
      [record] = self._reader(path).read([int(self._record_of[place])])
      return np.frombuffer(record, self._dtype).reshape(-1, self._width)
    except (RuntimeError, ValueError, IndexError) as error:
      raise _damaged(path) from error


class FrameWriter:
  """Adds to a store, part by part; several may write into one folder."""

  def __init__(self, folder: Path):
    self._folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    self._keys: list[bytes] = []
    self._bytes = 0
    self._writer: ArrayRecordWriter | None = None
    self._path = folder

  def write(self, key: bytes, frames: np.ndarray) -> None:
    """Adds frames [T, width]."""
    writer = self._writer
    if writer is None:
      name = f"part-{time.time_ns()}-{os.getpid()}.array_record"
      self._path = self._folder / name
      writer = self._writer = ArrayRecordWriter(str(self._path), "group_size:1")
      self._bytes = 0
    record = np.ascontiguousarray(frames).tobytes()
    writer.write(record)
    self._keys.append(key)
    self._bytes += len(record)
    if len(self._keys) >= PART_RECORDS or self._bytes >= PART_BYTES:
      self.close()

  def close(self) -> None:
    """Finishes the part."""
    if self._writer is None:
      return
    self._writer.close()
    halves = np.frombuffer(b"".join(self._keys), np.uint64).reshape(-1, 2)
    # A name that FrameStore does not look for, until the file is whole.
    temporary = self._path.with_suffix(".keys")
    with open(temporary, "wb") as file:
      np.save(file, halves)
    os.replace(temporary, self._path.with_suffix(".npy"))
    self._writer, self._keys = None, []


def _reader(path: Path) -> ArrayRecordReader:
  return ArrayRecordReader(str(path), "readahead_buffer_size:0")


def _part_keys(path: Path) -> np.ndarray:
  try:
    keys = np.load(path.with_suffix(".npy"), allow_pickle=False)
    reader = _reader(path)
    whole = keys.dtype == np.uint64 and keys.shape == (reader.num_records(), 2)
    reader.close()
  except (OSError, RuntimeError, ValueError) as error:
    raise _damaged(path) from error
  if not whole:
    raise _damaged(path)
  return keys


def _damaged(path: Path) -> UserError:
  return UserError(
    f"frame cache {path}: damaged; delete it and {path.with_suffix('.npy').name}, and run slm_jax cache again"
  )
