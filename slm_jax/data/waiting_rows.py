"""Rows of one share that wait until a batch of their bucket is full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.data import length_buckets
from slm_jax.data.length_buckets import Buckets, Row

Arrange = Callable[[list[Row]], list[int | None]]

_FILE = "waiting.npz"
_NUMBERS, _BUCKETS, _READ = "numbers", "buckets", "read"


class WaitingRows:
  """One queue for each bucket; rows have their own lengths, without padding.

  Attributes:
    read: rows added so far.
  """

  def __init__(self, buckets: Buckets):
    self._buckets = buckets
    # Bucket → its rows with the number of rows read before each, oldest first.
    self._queues: list[list[tuple[int, Row]]] = [[] for _ in buckets]
    self.read = 0

  def add(self, row: Row, sizes: np.ndarray) -> None:
    """`sizes` [number of features] in the order of the buckets' names; the last bucket must hold them."""
    bucket = int(length_buckets.first_that_holds(sizes[None], self._buckets)[0])
    self._queues[bucket].append((self.read, row))
    self.read += 1

  def counts(self) -> list[int]:
    """Rows that wait in each bucket."""
    return [len(queue) for queue in self._queues]

  def oldest(self) -> list[int]:
    """Rows read since each bucket's oldest was, -1 for an empty bucket."""
    return [self.read - queue[0][0] if queue else -1 for queue in self._queues]

  def take(
    self, bucket: int, count: int, patience: int, arrange: Arrange | None = None
  ) -> list[Row | None]:
    """Removes rows that fit into a bucket: late ones, then its own, then the next smaller buckets'.

    Args:
      bucket: its index; it and those that fit into it hold at least `count` rows.
      count: how many.
      patience: rows read since a late one are more.
      arrange: chooses among the late and the bucket's own, and smaller ones if these are less than
        `count`: rows, the first to go first -> `count` of their indices, or None for no row. None
        takes the first.
    """
    held = sorted(
      (self.read - number <= patience, -i, number, place)
      for i, queue in enumerate(self._queues)
      if length_buckets.holds(self._buckets[bucket], self._buckets[i])
      for place, (number, _) in enumerate(queue)
    )
    chosen: list[int | None] = list(range(count))
    if arrange is not None:
      first = sum(1 for waits, i, _, _ in held if not waits or -i == bucket)
      held = held[: max(count, first)]
      chosen = arrange([self._queues[-i][place][1] for _, i, _, place in held])
    rows = [None if k is None else self._queues[-held[k][1]][held[k][3]][1] for k in chosen]
    taken = [held[k] for k in chosen if k is not None]
    for _, i, _, place in sorted(taken, key=lambda t: -t[3]):
      del self._queues[-i][place]
    return rows

  def save(self, folder: Path) -> None:
    """Writes what waits into an existing folder."""
    held = [(i, *entry) for i, queue in enumerate(self._queues) for entry in queue]
    arrays: dict[str, Any] = {
      _READ: np.asarray(self.read),
      _BUCKETS: np.asarray([i for i, _, _ in held], int),
      _NUMBERS: np.asarray([number for _, number, _ in held], int),
    }
    for name in held[0][2] if held else ():
      values = [np.atleast_1d(row[name]) for _, _, row in held]
      arrays[f"row.{name}"] = np.concatenate(values)
      arrays[f"size.{name}"] = np.asarray(
        [-1 if row[name].ndim == 0 else len(row[name]) for _, _, row in held]
      )
    np.savez(folder / _FILE, **arrays)

  def restore(self, folder: Path) -> None:
    """Reads back what `save` wrote."""
    with np.load(folder / _FILE, allow_pickle=False) as file:
      arrays = dict(file)
    self.read = int(arrays[_READ])
    rows: list[Row] = [{} for _ in arrays[_NUMBERS]]
    for name in (key.removeprefix("row.") for key in arrays if key.startswith("row.")):
      sizes = arrays[f"size.{name}"]
      ends = np.cumsum(np.where(sizes < 0, 1, sizes))
      for row, size, end in zip(rows, sizes, ends, strict=True):
        values = arrays[f"row.{name}"]
        row[name] = values[end - 1] if size < 0 else values[end - size : end].copy()
    self._queues = [[] for _ in self._buckets]
    held = zip(arrays[_BUCKETS].tolist(), arrays[_NUMBERS].tolist(), rows, strict=True)
    for bucket, number, row in held:
      self._queues[bucket].append((number, row))
