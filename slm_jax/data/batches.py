"""Batches of a SeqIO task or mixture for training."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio

from slm_jax.data import length_buckets, lm_rows
from slm_jax.data.provider import contents, hide_accelerators, open_provider
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
    provider = open_provider(mixture_or_task_name, split, use_cached)
    lengths = {name: int(length) for name, length in task_feature_lengths.items()}
    shapes = _checked_shapes(provider, lengths, buckets, examples_per_lm_row, speech_positions)
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
    self.facts = {"data": self._pipeline, "examples": contents(provider, split, use_cached)}

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


def _checked_shapes(
  provider: seqio.Task | seqio.Mixture,
  lengths: Mapping[str, int],
  buckets: length_buckets.Buckets,
  examples_per_lm_row: int,
  speech_positions: lm_rows.SpeechPositions,
) -> list[dict[str, int]]:
  """Lengths of the features in each bucket, as given; raises UserError for what does not go together."""
  if unknown := sorted(set(lengths) - set(provider.output_features)):
    raise UserError(
      f"TASK_FEATURE_LENGTHS names {unknown}; {provider.name} has the features "
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
    raise UserError(f"{provider.name}: {error}") from error
  return shapes
