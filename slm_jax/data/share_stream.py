"""The rows of one share of a SeqIO task's or mixture's training data, with a position that can be saved."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from slm_jax.data import length_buckets
from slm_jax.data.length_buckets import Row
from slm_jax.data.speech_features import Spec, converter_for
from slm_jax.errors import UserError

# A feature that names the example, where a task has it.
ID = "id"
# After so many dropped in a row the lengths cannot be what was meant, and waiting for a fit could
# take for ever.
MAX_DROPPED_IN_A_ROW = 2_000
_POSITION = "position"
_SKIPPED = "skipped.json"
_DROPPED = "dropped"
_SIZES = "sizes"
_KEEP = "keep"


class TooLong(Exception):
  """No example is short enough; the text is the beginning of a sentence."""


class Exhausted(Exception):
  """The share has no examples."""


def drop_over_long(dataset: tf.data.Dataset, feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
  """Removes examples with a feature longer than its length, and counts them.

  Adds, both int64 [number of features, in the order of `feature_lengths`], `sizes`: how long the
  features are, and `dropped`: how many examples before this one were removed for each feature (an
  example with two long features counts for both).
  The counts are state of the dataset's iterator, so a saved and restored iterator goes on counting
  where it stood.
  """
  limits = tf.constant(list(feature_lengths.values()), tf.int64)
  names = ", ".join(f"{name} > {length}" for name, length in feature_lengths.items())

  def count(state, example):
    totals, in_a_row = state
    sizes = tf.stack([tf.size(example[name], tf.int64) for name in feature_lengths])
    too_long = sizes > limits
    keep = tf.logical_not(tf.reduce_any(too_long))
    totals += tf.cast(too_long, tf.int64)
    in_a_row = tf.where(keep, tf.zeros_like(in_a_row), in_a_row + 1)
    tf.debugging.assert_less(
      in_a_row,
      tf.constant(MAX_DROPPED_IN_A_ROW, tf.int64),
      f"{MAX_DROPPED_IN_A_ROW} examples in a row are too long ({names})",
    )
    return (totals, in_a_row), {
      **example,
      _SIZES: sizes,
      _DROPPED: totals,
      _KEEP: keep,
    }

  start = (tf.zeros([len(feature_lengths)], tf.int64), tf.constant(0, tf.int64))
  kept = dataset.scan(start, count).filter(lambda example: example[_KEEP])
  return kept.map(lambda example: {name: example[name] for name in example if name != _KEEP})


class ShareStream:
  """Endless, shuffled rows of one share, each as long as it is.

  Attributes:
    skipped: int64 [number of features]: examples left out so far because that feature was too long.
  """

  def __init__(
    self,
    provider: seqio.Task | seqio.Mixture,
    lengths: Mapping[str, int],
    *,
    split: str,
    seed: int,
    shard: seqio.ShardInfo,
    use_cached: bool,
    read_ahead: int,
  ):
    """Arguments as of `batches.TrainBatches`; `read_ahead` rows are made before they are asked for."""
    # SeqIO draws the order and the mixture from the seed alone; with one for all, every share
    # would mix its tasks in the same sequence. Where shares are cut from the examples instead of
    # the files, all must see them in one order.
    tasks = seqio.get_subtasks(provider)
    if all(_num_files(task, split, use_cached) >= shard.num_shards for task in tasks):
      seed += 1_000_003 * shard.index
    passed_on: dict[str, Any] = (
      {"passthrough_features": [ID]} if isinstance(provider, seqio.Mixture) else {}
    )
    dataset = provider.get_dataset(
      lengths,
      split=split,
      use_cached=use_cached,
      shuffle=True,
      seed=seed,
      shard_info=shard,
      num_epochs=None,
      trim_output_features=False,  # SeqIO would cut long examples in silence
      try_in_mem_cache=False,  # the cached examples would become part of every saved position
      **passed_on,
    )
    named = dataset.element_spec.get(ID) == tf.TensorSpec([], tf.string)
    dataset = drop_over_long(dataset, lengths)
    passed = {name: Spec(dtype=tf.int64) for name in (_DROPPED, _SIZES)}
    if named:
      passed[ID] = Spec(dtype=tf.string, rank=0)
    try:
      converter = converter_for(lengths, passthrough_features=passed)
    except ValueError as error:
      raise UserError(f"TASK_FEATURE_LENGTHS of {provider.name}: {error}") from error
    sizes = {**lengths, _DROPPED: len(lengths), _SIZES: len(lengths)} | ({ID: 1} if named else {})
    names = list(lengths)
    dataset = converter(dataset, sizes).map(
      lambda row: length_buckets.cut_to_size(row, row[_SIZES], names)
    )
    dataset = dataset.prefetch(read_ahead)
    options = tf.data.Options()
    options.deterministic = True
    # Bounds what waits in buffers, and so the size of a saved position.
    options.autotune.ram_budget = 64 * 2**20
    self._iterator = iter(dataset.with_options(options))
    self.skipped = np.zeros(len(lengths), np.int64)

  def __next__(self) -> tuple[Row, np.ndarray]:
    """Batch's field name → array [length], and `id` (UTF-8, uint8) where the task has it; and the
    lengths of the features int64 [number of features].

    Raises:
      TooLong: far too many examples in a row are.
      Exhausted: there are none.
    """
    try:
      tensors = next(self._iterator)
    except StopIteration:
      raise Exhausted from None
    except tf.errors.InvalidArgumentError as error:
      if "in a row are too long" not in error.message:
        raise
      raise TooLong(f"{MAX_DROPPED_IN_A_ROW} examples in a row are longer") from error
    row = {name: np.asarray(tensor.numpy()) for name, tensor in tensors.items()}
    if ID in row:
      row[ID] = np.frombuffer(row[ID].item(), np.uint8)
    self.skipped = np.maximum(self.skipped, row.pop(_DROPPED))
    return row, row.pop(_SIZES)

  def save(self, folder: Path) -> None:
    """Writes the position after the last row returned into an existing folder."""
    tf.train.Checkpoint(iterator=self._iterator).write(str(folder / _POSITION))
    (folder / _SKIPPED).write_text(json.dumps(self.skipped.tolist()))

  def restore(self, folder: Path) -> None:
    """Goes to a position written by `save`."""
    checkpoint = tf.train.Checkpoint(iterator=self._iterator)
    checkpoint.read(str(folder / _POSITION)).assert_consumed()
    self.skipped = np.asarray(json.loads((folder / _SKIPPED).read_text()), np.int64)


def _num_files(task: seqio.Task, split: str, use_cached: bool) -> int:
  """Pieces that SeqIO can deal out whole; 1 if it deals out examples."""
  cached = use_cached and task.supports_caching
  source = task._get_cached_source(split) if cached else task.source
  return 1 if source.supports_arbitrary_sharding else len(source.list_shards(split))
