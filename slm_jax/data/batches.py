"""Batches of a SeqIO task or mixture for training, and single examples of a task for evaluation."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from slm_jax.data import length_buckets
from slm_jax.data.speech_features import Spec, converter_for
from slm_jax.errors import UserError

POSITION = "position"
PIPELINE = "pipeline.json"
# After so many dropped in a row the lengths cannot be what was meant, and waiting for a fit could
# take for ever.
MAX_DROPPED_IN_A_ROW = 2_000
_DROPPED = "dropped"
_KEEP = "keep"


def drop_over_long(dataset: tf.data.Dataset, feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
  """Removes examples with a feature longer than its length, and counts them.

  Adds `dropped` int64 [number of features, in the order of `feature_lengths`]: how many examples
  before this one were removed for each feature (an example with two long features counts for both).
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
    return (totals, in_a_row), {**example, _DROPPED: totals, _KEEP: keep}

  start = (tf.zeros([len(feature_lengths)], tf.int64), tf.constant(0, tf.int64))
  kept = dataset.scan(start, count).filter(lambda example: example[_KEEP])
  return kept.map(lambda example: {name: example[name] for name in example if name != _KEEP})


class TrainBatches:
  """Endless, shuffled batches whose position can be saved and restored exactly.

  The batches are a function of the arguments and the data alone. A task's examples come round
  equally often, each time in another order; its shuffle buffer reaches across the ends of epochs.

  Attributes:
    skipped: feature name → examples left out so far because that feature was too long. Never
      decreases, and is part of the saved position.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    *,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int = 0,
    split: str = "train",
    shard_index: int = 0,
    num_shards: int = 1,
    use_cached: bool = True,
    buckets: length_buckets.Buckets = (),
  ):
    """Opens the dataset; reads nothing yet.

    Args:
      mixture_or_task_name: registered with SeqIO.
      task_feature_lengths: the task's features and their longest lengths; longer examples are left
        out.
      batch_size: rows of each batch of this shard.
      seed: of every random choice.
      split: e.g. "train".
      shard_index: which of `num_shards` disjoint shares of the data this is.
      num_shards: number of shares, one a process.
      use_cached: read the offline cache of tasks that support one.
      buckets: declared lengths, growing, the last equal to `task_feature_lengths`; each batch has
        the lengths of one of them. None: every batch has the longest.

    Raises:
      UserError: a cache is missing, the split is, or the features do not fit any converter.
    """
    hide_accelerators()
    provider = _provider(mixture_or_task_name, split, use_cached)
    lengths = {name: int(length) for name, length in task_feature_lengths.items()}
    unknown = sorted(set(lengths) - set(provider.output_features))
    if unknown:
      raise UserError(
        f"TASK_FEATURE_LENGTHS names {unknown}; {mixture_or_task_name} has the features "
        f"{sorted(provider.output_features)}"
      )
    try:
      length_buckets.check(buckets, lengths)
    except ValueError as error:
      raise UserError(f"{mixture_or_task_name}: {error}") from error
    if buckets and num_shards > 1:
      raise UserError(
        "length_buckets need a single process: several would not agree on each batch's shape"
      )
    self._names = list(lengths)
    self._buckets = buckets or (lengths,)
    self._pipeline = {
      "mixture_or_task_name": mixture_or_task_name,
      "task_feature_lengths": lengths,
      "batch_size": batch_size,
      "seed": seed,
      "split": split,
      "shard_index": shard_index,
      "num_shards": num_shards,
      "buckets": [dict(bucket) for bucket in buckets],
    }
    dataset = provider.get_dataset(
      lengths,
      split=split,
      use_cached=use_cached,
      shuffle=True,
      seed=seed,
      shard_info=seqio.ShardInfo(shard_index, num_shards),
      num_epochs=None,
      trim_output_features=False,  # SeqIO would cut long examples in silence
      try_in_mem_cache=False,  # the cached examples would become part of every saved position
    )
    dataset = drop_over_long(dataset, lengths)
    try:
      converter = converter_for(lengths, passthrough_features={_DROPPED: Spec(dtype=tf.int64)})
    except ValueError as error:
      raise UserError(f"TASK_FEATURE_LENGTHS of {mixture_or_task_name}: {error}") from error
    dataset = converter(dataset, {**lengths, _DROPPED: len(lengths)})
    dataset = length_buckets.batch_by_bucket(dataset, self._buckets, batch_size).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    # Bounds what waits in buffers, and so the size of a saved position.
    options.autotune.ram_budget = 64 * 2**20
    self._iterator = iter(dataset.with_options(options))
    self._skipped = np.zeros(len(lengths), np.int64)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Batch's field name → array [batch_size, …].

    Raises:
      UserError: far too many examples in a row are longer than `task_feature_lengths` allows.
    """
    try:
      tensors = next(self._iterator)
    except tf.errors.InvalidArgumentError as error:
      if "in a row are too long" not in error.message:
        raise
      lengths = self._pipeline["task_feature_lengths"]
      raise UserError(
        f"{self._pipeline['mixture_or_task_name']}: {MAX_DROPPED_IN_A_ROW} examples in a row are "
        f"longer than TASK_FEATURE_LENGTHS={lengths}; raise the lengths"
      ) from error
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    self._skipped = np.maximum(self._skipped, arrays.pop(_DROPPED).max(axis=0))
    return length_buckets.trim(arrays, self._buckets)

  @property
  def skipped(self) -> dict[str, int]:
    return dict(zip(self._names, self._skipped.tolist(), strict=True))

  def save(self, directory: str) -> None:
    """Writes the position after the last batch returned into an existing folder."""
    tf.train.Checkpoint(iterator=self._iterator).write(str(Path(directory) / POSITION))
    state = {"pipeline": self._pipeline, "skipped": self._skipped.tolist()}
    (Path(directory) / PIPELINE).write_text(json.dumps(state, indent=2) + "\n")

  def restore(self, directory: str) -> None:
    """Goes to a position written by `save`: the next batch is the one that followed it, exactly.

    Raises:
      UserError: no position there, or it was saved by another pipeline (the message names the
        difference).
    """
    path = Path(directory) / PIPELINE
    if not path.exists():
      raise UserError(f"{directory} holds no saved data position ({PIPELINE} is missing)")
    state = json.loads(path.read_text())
    for name, value in self._pipeline.items():
      if state["pipeline"].get(name) != value:
        raise UserError(
          f"the data position in {directory} was saved with {name}="
          f"{state['pipeline'].get(name)!r}, this run has {value!r}; "
          "continue with the same data settings or start in a new MODEL_DIR"
        )
    tf.train.Checkpoint(iterator=self._iterator).read(
      str(path.with_name(POSITION))
    ).assert_consumed()
    self._skipped = np.asarray(state["skipped"], np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechExample:
  """One utterance with an instruction and the answer expected. Text that a task lacks is ""."""

  id: str
  task: str
  audio: np.ndarray  # int16 [S], 16 kHz
  instruction: str
  target: str
  transcript: str
  language: str
  target_language: str
  voice: str


class EvalExamples:
  """The examples of a task's split, in the order of the data, each time it is iterated.

  Attributes:
    skipped: examples left out of the last iteration because their audio was longer than
      `max_samples`.
  """

  def __init__(
    self,
    task_name: str,
    split: str = "validation",
    *,
    max_samples: int | None = None,
    max_examples: int | None = None,
    use_cached: bool = True,
  ):
    """Raises UserError if the task has no such split, no audio, or lacks its cache."""
    hide_accelerators()
    self._task = _provider(task_name, split, use_cached)
    if "audio" not in self._task.output_features:
      raise UserError(
        f"task {task_name} has no audio; its features: {sorted(self._task.output_features)}"
      )
    self._split = split
    self._max_samples = max_samples
    self._max_examples = max_examples
    self._use_cached = use_cached
    self.skipped = 0

  def __iter__(self) -> Iterator[SpeechExample]:
    self.skipped = 0
    yielded = 0
    dataset = self._task.get_dataset(
      None, self._split, use_cached=self._use_cached, shuffle=False, try_in_mem_cache=False
    )
    for example in dataset.as_numpy_iterator():
      if yielded == self._max_examples:
        return
      if self._max_samples is not None and len(example["audio"]) > self._max_samples:
        self.skipped += 1
        continue
      yielded += 1
      yield _speech_example(example)


def _speech_example(example: dict) -> SpeechExample:
  def text(name: str, default: str = "") -> str:
    return example[name].decode() if name in example else default

  return SpeechExample(
    id=text("id"),
    task=text("task"),
    audio=example["audio"],
    instruction=text("inputs_pretokenized"),
    target=text("targets_pretokenized"),
    transcript=text("transcript"),
    language=text("language"),
    target_language=text("target_language"),
    voice=text("voice"),
  )


def hide_accelerators() -> None:
  """Keeps TensorFlow on the CPU: it would otherwise claim the memory of JAX's devices."""
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")


def _provider(name: str, split: str, use_cached: bool):
  provider = seqio.get_mixture_or_task(name)
  if split not in provider.splits:
    raise UserError(f"{name} has no split {split!r}; it has {sorted(provider.splits)}")
  missing = [
    t.name
    for t in seqio.get_subtasks(provider)
    if use_cached and t.supports_caching and not t.cache_dir
  ]
  if missing:
    folders = seqio.utils.get_global_cache_dirs()
    raise UserError(
      f"no offline cache of {missing} in {folders}; make it with slm_jax tasks or set the folder"
    )
  return provider
