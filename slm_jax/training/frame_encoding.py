"""Fills a frame cache: every utterance is encoded once, in batches of the run's declared lengths."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from slm_jax.training.frame_cache import PARTS
from slm_jax.training.frame_store import FrameStore, FrameWriter, audio_key
from slm_jax.training.frozen_frames import FrozenFrames


@dataclasses.dataclass
class Counts:
  """What has been done so far; seconds are those of the audio encoded."""

  known: int = 0
  encoded: int = 0
  seconds: float = 0.0
  too_long: int = 0

  @property
  def read(self) -> int:
    """Utterances seen."""
    return self.known + self.encoded + self.too_long


class FrameEncoder:
  """Encodes utterances that a cache lacks and writes them to it.

  Attributes:
    counts: of all calls.
  """

  def __init__(
    self,
    frames: FrozenFrames,
    place: Path,
    *,
    sample_lengths: tuple[int, ...],
    batch_size: int,
    report: Callable[[Counts], None] = lambda counts: None,
  ):
    """Opens the cache's folder `place`.

    Args:
      frames: of the run.
      place: as of `frame_cache.create`.
      sample_lengths: declared lengths in samples, growing; longer utterances are left out.
      batch_size: rows of a batch, a multiple of the mesh's parts of one.
      report: called after every utterance.

    Raises:
      UserError: a part of the cache is damaged.
    """
    self._frames, self._sizes, self._batch_size = frames, sample_lengths, batch_size
    self._store = FrameStore(place / PARTS, width=frames.width, dtype=frames.dtype)
    self._writer = FrameWriter(place / PARTS)
    self._waiting: dict[int, dict[bytes, np.ndarray]] = {size: {} for size in sample_lengths}
    self._met: set[bytes] = set()
    self._report = report
    self.counts = Counts()

  def add(self, utterances: Iterable[np.ndarray]) -> None:
    """Encodes int16 samples [S] of each, in batches as they fill; `close` does the rest."""
    for audio in utterances:
      self._add(audio)
      self._report(self.counts)

  def _add(self, audio: np.ndarray) -> None:
    if len(audio) > self._sizes[-1]:
      self.counts.too_long += 1
      return
    key = audio_key(audio)
    if key in self._store or key in self._met:
      self.counts.known += 1
      return
    self._met.add(key)
    size = next(size for size in self._sizes if size >= len(audio))
    self._waiting[size][key] = audio
    if len(self._waiting[size]) == self._batch_size:
      self._encode(size)

  def _encode(self, size: int) -> None:
    rows = self._waiting[size]
    audio = np.zeros((self._batch_size, size), np.int16)
    lengths = np.zeros(self._batch_size, np.int32)
    for index, row in enumerate(rows.values()):
      audio[index, : len(row)], lengths[index] = row, len(row)
    # Rows that fill the batch up have no key.
    for key, row in zip(rows, self._frames(audio, lengths), strict=False):
      self._writer.write(key, row)
    self.counts.encoded += len(rows)
    self.counts.seconds += float(lengths.sum()) / 16_000
    rows.clear()

  def close(self) -> None:
    """Encodes what waits for a full batch, and finishes the last part."""
    for size, rows in self._waiting.items():
      if rows:
        self._encode(size)
    self._writer.close()
