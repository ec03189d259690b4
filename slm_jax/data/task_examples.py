"""A few examples of a task as training would see them, without filling its cache."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from slm_jax.data.example_source import Example, ExampleSource

# Consecutive candidates taken at each place of a split.
_BLOCK = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskExample:
  """One example; text and features that the task lacks are "" and empty.

  Attributes:
    audio: int16 `[S]` at 16 kHz.
    inputs, targets: token ids int32, with EOS.
    instruction, target: the texts of these.
  """

  id: str
  audio: np.ndarray
  inputs: np.ndarray
  targets: np.ndarray
  instruction: str
  target: str
  transcript: str
  language: str
  target_language: str
  speaker: str

  def lengths(self) -> dict[str, int]:
    """Task feature → its length."""
    return {name: len(getattr(self, name)) for name in ("audio", "inputs", "targets")}


class SampledSplit:
  """Examples of a split: consecutive ones from `start`, or blocks from places spread evenly.

  A project's own source is read itself, whether or not it is cached, so that what it drops can be
  told; other tasks are read as SeqIO reads them, from the beginning.

  Attributes:
    candidates: records of the split, None where that is not known.
    read: candidates read so far.
  """

  def __init__(self, task: seqio.Task, split: str, count: int, *, start: int | None = None):
    """`start` None spreads. Raises UserError if the source cannot be opened."""
    self.task = task
    self.split = split
    self.read = 0
    self._own = isinstance(task.source, ExampleSource) and isinstance(
      task.preprocessors[0], seqio.CacheDatasetPlaceholder
    )
    self.candidates = task.source.num_input_examples(split) if self._own else None
    self._count = count
    self._start = start

  def __iter__(self) -> Iterator[TaskExample]:
    if self._own:
      source: Any = self.task.source
      signature = {name: tf.TensorSpec([], dtype) for name, dtype in source.fields.items()}
      dataset = tf.data.Dataset.from_generator(self._raw, output_signature=signature)
      dataset = self.task.preprocess_postcache(dataset, sequence_length=None, seed=0)
    else:
      dataset = self.task.get_dataset(
        None,
        self.split,
        use_cached=bool(self.task.cache_dir),
        shuffle=False,
        try_in_mem_cache=False,
      )
      dataset = dataset.skip(self._start or 0).take(self._count)
    for example in dataset.as_numpy_iterator():
      if not self._own:
        self.read += 1
      yield _task_example(example)

  def _raw(self) -> Iterator[Example]:
    source: Any = self.task.source
    for start, stop in self._ranges():
      yield from source.make_examples(self.split, start, stop)
      self.read += stop - start

  def _ranges(self) -> list[tuple[int, int]]:
    total = self.candidates or 0
    if self._start is not None:
      return [(min(self._start, total), min(self._start + self._count, total))]
    if self._count >= total:
      return [(0, total)]
    blocks = -(-self._count // _BLOCK)
    starts = np.linspace(0, total - min(_BLOCK, total), blocks).astype(int).tolist()
    cuts = [*starts[1:], total]  # blocks must not overlap
    ranges = [(a, min(a + _BLOCK, b)) for a, b in zip(starts, cuts, strict=True)]
    return [(a, b) for a, b in ranges if b > a]


def _task_example(example: dict[str, Any]) -> TaskExample:
  def text(name: str) -> str:
    return example[name].decode(errors="replace") if name in example else ""

  def ids(name: str, dtype) -> np.ndarray:
    return np.asarray(example.get(name, ()), dtype)

  return TaskExample(
    id=text("id"),
    audio=ids("audio", np.int16),
    inputs=ids("inputs", np.int32),
    targets=ids("targets", np.int32),
    instruction=text("inputs_pretokenized"),
    target=text("targets_pretokenized"),
    transcript=text("transcript"),
    language=text("language"),
    target_language=text("target_language"),
    speaker=text("voice"),
  )
