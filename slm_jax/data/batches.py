"""Batches of a SeqIO task or mixture for training, and single examples of a task for evaluation."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from slm_jax.data import length_buckets, lm_rows
from slm_jax.data.seqio_cache import MANIFEST
from slm_jax.data.share_stream import ID, Exhausted, ShareStream, TooLong
from slm_jax.data.waiting_rows import Arrange, WaitingRows
from slm_jax.errors import UserError

PIPELINE = "pipeline.json"
# Of saved positions.
_FORMAT = 2
# A row waits for a batch of its bucket while its share reads at most so many rows for each bucket and each row
# that the share has in a batch. This bounds the memory that waiting rows take, too.
PATIENCE = 8


class TrainBatches:
  """Endless, shuffled batches whose position can be saved and restored exactly.

  The batches are a function of the arguments and the data alone. Rows come from `num_shards`
  disjoint shares of the data, each with an order of its own: the first `batch_size / num_shards`
  rows from share 0, and so on. Which process holds which rows changes nothing about them. A task's
  examples come round equally often, each time in another order; its shuffle buffer reaches across
  the ends of epochs.

  Neighbours that share a row of the LM are chosen within a share. Where too few fit, rows of padding
  fill the batch up.

  With buckets, all shares read equally many rows, which wait in a queue for each bucket, until some
  bucket has enough for a batch in every share (`length_buckets.choose`). No row waits for ever:
  after a bounded number of rows read it joins a batch of a bucket that all shares can fill.

  Attributes:
    example_ids: of the last batch's own rows, where the task's examples have a field `id`, else [].
    facts: settings and contents of the data, the same for all processes of a run.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    *,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int = 0,
    split: str = "train",
    num_shards: int = 1,
    rows: Sequence[int] | None = None,
    own_rows: Sequence[int] | None = None,
    use_cached: bool = True,
    buckets: length_buckets.Buckets = (),
    examples_per_lm_row: int = 1,
    speech_positions: lm_rows.SpeechPositions = lambda samples, longest: 0,
    gather: Callable[[Any], list] = lambda value: [value],
  ):
    """Opens the dataset; reads nothing yet.

    Args:
      mixture_or_task_name: registered with SeqIO.
      task_feature_lengths: the task's features and their longest lengths; longer examples are left
        out.
      batch_size: rows of a whole batch, of all processes.
      seed: of every random choice.
      split: e.g. "train".
      num_shards: shares of the data, a divisor of `batch_size`.
      rows: rows of the whole batch that this process needs, growing; None is all. Shares that
        none of them comes from are not read.
      own_rows: those of `rows` that no other process answers for; a share's position is written
        by the process whose own its first row is. None is `rows`.
      use_cached: read the offline cache of tasks that support one.
      buckets: declared lengths; a row belongs to the first that holds it. The last is equal to
        `task_feature_lengths`. Each batch has the lengths of one of them. None: every batch has the
        longest.
      examples_per_lm_row: neighbours that share a row of the LM, a divisor of each share's rows in a
        batch. If above 1, buckets say with `lm_inputs` and `lm_targets` how long such a row is.
      speech_positions: (samples, samples of the batch's longest) -> positions of the LM's encoder that
        this much speech takes at most.
      gather: this process's JSON-ready value -> those of all processes, whose next batch it waits
        for; called with buckets and several shares only.

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
    # All in one order of names, that of the rows' sizes.
    shapes = [
      {name: size for name, size in bucket.items() if name not in lm_rows.LM_LENGTHS}
      for bucket in buckets
    ]
    try:
      length_buckets.check(shapes, lengths)
      lm_rows.check(buckets, examples_per_lm_row, speech_positions)
    except ValueError as error:
      raise UserError(f"{mixture_or_task_name}: {error}") from error
    if batch_size % (num_shards * examples_per_lm_row):
      raise UserError(
        f"BATCH_SIZE={batch_size} is not a multiple of num_shards={num_shards} x "
        f"examples_per_lm_row={examples_per_lm_row}"
      )
    self._buckets = [
      {name: int(bucket[name]) for name in lengths} for bucket in shapes or [lengths]
    ]
    self._lm_rows = [lm_rows.lm_rows_of(bucket, examples_per_lm_row) for bucket in buckets] or [
      None
    ]
    self._speech_positions = speech_positions
    self._gather = gather if num_shards > 1 and len(self._buckets) > 1 else lambda value: [value]
    self._pipeline = {
      "format": _FORMAT,
      "mixture_or_task_name": mixture_or_task_name,
      "task_feature_lengths": lengths,
      "batch_size": batch_size,
      "seed": seed,
      "split": split,
      "num_shards": num_shards,
      "buckets": [dict(bucket) for bucket in buckets],
    }
    if examples_per_lm_row > 1:
      self._pipeline["examples_per_lm_row"] = examples_per_lm_row
    share = batch_size // num_shards
    wanted = np.arange(batch_size) if rows is None else np.asarray(rows)
    own = wanted if own_rows is None else np.asarray(own_rows)
    shards = sorted({int(row) // share for row in wanted})
    self._own_shards = [shard for shard in shards if shard * share in own]
    # Where this process's rows stand among those of the shares that it reads.
    read = np.concatenate([np.arange(shard * share, (shard + 1) * share) for shard in shards])
    self._places = np.searchsorted(read, wanted)
    self._own = np.isin(wanted, own)
    self._streams = {
      shard: ShareStream(
        provider,
        lengths,
        split=split,
        seed=seed,
        shard=seqio.ShardInfo(shard, num_shards),
        use_cached=use_cached,
        read_ahead=2 * share,
      )
      for shard in shards
    }
    self._share_rows = share
    # Examples of a bucket that wait before its batch is formed.
    self._enough = share
    if examples_per_lm_row > 1:
      self._enough += lm_rows.CHOICE * examples_per_lm_row
    self._patience = PATIENCE * len(self._buckets) * share
    self._waiting = {shard: WaitingRows(self._buckets) for shard in shards}
    # Rows that wait [shares, buckets], of all processes' shares, while that is known.
    self._counts: np.ndarray | None = None
    self.example_ids: list[str] = []
    self.facts = {"data": self._pipeline, "examples": _contents(provider, split, use_cached)}

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, Any]:
    """Batch's field name → array [number of `rows`, …], and `lm_rows` where examples share them.

    Raises:
      UserError: far too many examples in a row are longer than `task_feature_lengths` allows.
    """
    bucket = self._next_bucket()
    rows = [
      row
      for waiting in self._waiting.values()
      for row in waiting.take(bucket, self._share_rows, self._patience, self._arrange(bucket))
    ]
    ids = [None if row is None else row.pop(ID, None) for row in rows]
    rows, ids = [rows[i] for i in self._places], [ids[i] for i in self._places]
    self.example_ids = [
      name.tobytes().decode()
      for name, own in zip(ids, self._own, strict=True)
      if own and name is not None
    ]
    joined: dict[str, Any] = length_buckets.join(rows, self._buckets[bucket])
    if (shared := self._lm_rows[bucket]) is not None:
      joined["lm_rows"] = shared
    return joined

  def _arrange(self, bucket: int) -> Arrange | None:
    """Chooses what shares rows of the LM."""
    shared = self._lm_rows[bucket]
    if shared is None:
      return None
    limits, num_rows = (shared.inputs, shared.targets), self._share_rows // shared.examples

    def arrange(rows: list[length_buckets.Row]) -> list[int | None]:
      sizes = [
        lm_rows.positions(row, self._buckets[bucket], self._speech_positions) for row in rows
      ]
      return lm_rows.fill(np.asarray(sizes), limits, shared.examples, num_rows)

    return arrange

  def _next_bucket(self) -> int:
    """Reads until a batch can be filled; the same on all processes."""
    while True:
      counts, late = self._counts, False
      if counts is None:
        state = [
          (shard, waiting.counts(), waiting.oldest()) for shard, waiting in self._waiting.items()
        ]
        # Shares that several processes read are told by each, and the same.
        shares = {share[0]: share[1:] for part in self._gather(state) for share in part}
        counts, oldest = (np.asarray([s[i] for _, s in sorted(shares.items())]) for i in (0, 1))
        late = oldest.max() > self._patience
      else:
        oldest = np.zeros_like(counts)  # nothing was late, and nothing was read since
      bucket = length_buckets.choose(counts, oldest, self._buckets, self._enough, self._patience)
      if bucket is not None:
        # Which buckets late rows come from differs by share, and how many share rows of the LM.
        if late or self._lm_rows[bucket] is not None:
          self._counts = None
        else:
          self._counts = counts.copy()
          self._counts[:, bucket] -= self._share_rows
        return bucket
      self._read_round()
      self._counts = None

  def _read_round(self) -> None:
    for shard, stream in self._streams.items():
      for _ in range(self._share_rows):
        try:
          self._waiting[shard].add(*next(stream))
        except TooLong as error:
          lengths = self._pipeline["task_feature_lengths"]
          raise UserError(
            f"{self._pipeline['mixture_or_task_name']}: {error} than TASK_FEATURE_LENGTHS={lengths}; "
            "raise the lengths"
          ) from error
        except Exhausted:
          count = self._pipeline["num_shards"]
          raise UserError(
            f"{self._pipeline['mixture_or_task_name']}: share {shard} of {count} of split "
            f"{self._pipeline['split']!r} has no example; lower DatasetConfig.num_shards"
          ) from None

  @property
  def skipped(self) -> dict[str, int]:
    """Feature name → examples left out so far, of this process's own shares, because that feature
    was too long. Never decreases, and is part of the saved position."""
    names = self._pipeline["task_feature_lengths"]
    own = [self._streams[shard].skipped for shard in self._own_shards]
    return dict(zip(names, np.sum(own, axis=0, dtype=int).tolist(), strict=True)) if own else {}

  def save(self, directory: str) -> None:
    """Writes the position after the last batch returned into an existing folder, which the
    processes share: each writes its own shares'."""
    for shard in self._own_shards:
      folder = Path(directory) / f"shard_{shard:05d}"
      folder.mkdir(exist_ok=True)
      self._streams[shard].save(folder)
      self._waiting[shard].save(folder)
      (folder / PIPELINE).write_text(json.dumps(self._pipeline, indent=2) + "\n")

  def restore(self, directory: str) -> None:
    """Goes to a position written by `save`, of however many processes: the next batch is the one
    that followed it, exactly. Nothing is read again that was read before.

    Raises:
      UserError: no position there, or it was saved by another pipeline (the message names the
        difference).
    """
    folders = sorted(Path(directory).glob("shard_*"))
    if not folders or not (folders[0] / PIPELINE).exists():
      raise UserError(f"{directory} holds no saved data position ({PIPELINE} is missing)")
    saved = json.loads((folders[0] / PIPELINE).read_text())
    for name, value in self._pipeline.items():
      if saved.get(name) != value:
        raise UserError(
          f"the data position in {directory} was saved with {name}={saved.get(name)!r}, this run "
          f"has {value!r}; continue with the same data settings or start in a new MODEL_DIR"
        )
    for shard, stream in self._streams.items():
      folder = Path(directory) / f"shard_{shard:05d}"
      stream.restore(folder)
      self._waiting[shard].restore(folder)
    self._counts = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechExample:
  """One utterance with an instruction and the answer expected. Text that a task lacks is "".

  `names` are the words that the answer must get right though they are rare, the biasing words: an example's field
  `names`, in which | stands between them.
  """

  id: str
  task: str
  audio: np.ndarray  # int16 [S], 16 kHz
  instruction: str
  target: str
  transcript: str
  language: str
  target_language: str
  voice: str
  names: tuple[str, ...] = ()


class EvalExamples:
  """The examples of a task's split, in the order of the data, each time it is iterated.

  Attributes:
    skipped: examples left out of the last iteration because their audio was longer than
      `max_samples`.
    facts: version of the data, JSON-ready: the split, its number of examples, and a digest of the cache.
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
    self.facts = {"split": split, **_contents(self._task, split, use_cached)[self._task.name]}

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
    names=tuple(filter(None, text("names").split("|"))),
  )


def hide_accelerators() -> None:
  """Keeps TensorFlow on the CPU: it would otherwise claim the memory of JAX's devices."""
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")


def _contents(provider, split: str, use_cached: bool) -> dict[str, dict]:
  """Task → its rate in the mixture, number of examples, and a digest of its cache's shards."""
  found = {}
  for task in seqio.get_subtasks(provider):
    rate = provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1.0
    cached = use_cached and task.supports_caching and task.cache_dir
    manifest = Path(task.cache_dir or "") / MANIFEST
    found[task.name] = {
      "rate": rate,
      "examples": task.num_input_examples(split) if not cached else task.get_cached_stats(split),
      "cache": sha256(manifest.read_bytes()).hexdigest() if cached and manifest.is_file() else None,
    }
  return found


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
