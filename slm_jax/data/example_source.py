"""A SeqIO data source whose examples are made (or read) by Python, shard by shard."""

import abc
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

Example = dict[str, Any]


class ExampleSource(seqio.DataSource):
  """Base of the project's own sources; a subclass says how many candidates a split has and makes them.

  A split is the candidates 0…num_candidates-1, cut into shards of consecutive candidates. A shard is a pure
  function of (source, split, shard), so that it can be made by any process, at any time, alone. A candidate
  that cannot become an example is left out and counted in `dropped` by reason, never altered.

  Attributes:
    dropped: reason → candidates left out by this object so far.
  """

  # Field name → dtype of the examples; text is UTF-8 bytes.
  fields: Mapping[str, tf.DType]

  def __init__(self, num_candidates: Mapping[str, int], *, examples_per_shard: int):
    """Raises ValueError unless every split has a candidate and shards hold at least one."""
    if examples_per_shard < 1 or not all(count > 0 for count in num_candidates.values()):
      raise ValueError(f"{num_candidates=} and {examples_per_shard=} must be at least 1")
    super().__init__(splits=num_candidates, num_input_examples=num_candidates)
    self.num_candidates = dict(num_candidates)
    self.examples_per_shard = examples_per_shard
    self.dropped: Counter[str] = Counter()

  @abc.abstractmethod
  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    """Yields the examples of candidates start…stop-1, in order, with exactly the names of `fields`."""

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """JSON-ready facts that decide the examples; a cache made under other facts is not used."""

  def fingerprint(self) -> str:
    """SHA-256 of `describe()`, the split sizes and the shard size, in hex."""
    facts = self.describe() | {
      "candidates": self.num_candidates,
      "per_shard": self.examples_per_shard,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

  def num_input_examples(self, split: str) -> int:
    """Candidates of a split; the examples are fewer by those dropped."""
    return self.num_candidates[split]

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def shard_range(self, split: str, shard: int) -> tuple[int, int]:
    """First and one-past-last candidate of a shard."""
    start = shard * self.examples_per_shard
    return start, min(start + self.examples_per_shard, self.num_candidates[split])

  def list_shards(self, split: str) -> list[str]:
    count = -(-self.num_candidates[split] // self.examples_per_shard)
    return [f"{split}-{shard:05d}-of-{count:05d}" for shard in range(count)]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """The examples of every `shard_info.num_shards`-th shard, shards in random order if `shuffle`."""
    shards = np.arange(len(self.list_shards(split)))
    if shard_info:
      shards = shards[shard_info.index :: shard_info.num_shards]
    if shuffle:
      shards = np.random.default_rng(seed).permutation(shards)

    def examples() -> Iterator[Example]:
      for shard in shards:
        yield from self.make_examples(split, *self.shard_range(split, int(shard)))

    signature = {name: tf.TensorSpec([], dtype) for name, dtype in self.fields.items()}
    return tf.data.Dataset.from_generator(examples, output_signature=signature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSizes:
  """Number of candidates of a task's splits; 0 leaves the split out."""

  train: int = 0
  validation: int = 0

  def as_dict(self) -> dict[str, int]:
    return {name: count for name, count in dataclasses.asdict(self).items() if count}
