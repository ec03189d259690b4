"""A SeqIO data source whose examples are made (or read) by Python, shard by shard."""

import abc
import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from slm_jax.errors import UserError

Example = dict[str, Any]
# File that names the candidates left out as unusable, one JSON object a line.
BAD_EXAMPLES = "bad_examples.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A candidate that could not be used.

  Attributes:
    name: where it is, e.g. "data/train.jsonl:12".
    reason: what is wrong with it.
    count: candidates that are lost with it, itself among them.
  """

  name: str
  reason: str
  count: int = 1

  def __str__(self) -> str:
    return f"{self.name}: {self.reason}"


def check_problems(problems: Sequence[Problem], total: int, share: float, what: str) -> None:
  """Raises UserError if more than a share of `total` candidates of `what` are problems."""
  count = sum(problem.count for problem in problems)
  if count > share * total:
    first = "; ".join(map(str, problems[:3]))
    raise UserError(
      f"{what}: {count} of {total} records cannot be used, at most {share:.2%} may be; first: "
      f"{first}; mend them or raise max_problem_share"
    )


def problem_lines(split: str, problems: Iterable[Problem]) -> str:
  """The lines of `BAD_EXAMPLES` for these problems."""
  lines = ({"split": split, **dataclasses.asdict(problem)} for problem in problems)
  return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


class ExampleSource(seqio.DataSource):
  """Base of the project's own sources; a subclass counts a split's candidates and makes them.

  A split is the candidates 0…num_candidates-1, cut into shards of consecutive candidates. A shard
  is a pure function of (source, split, shard), so that it can be made by any process, at any time,
  alone. A candidate that does not become an example is either dropped by rule (too long) and
  counted, or a problem (a damaged file) and named; it is never altered.

  Attributes:
    dropped: rule → candidates it has left out of this object's examples so far.
    problems: the candidates that could not be used so far; a candidate is listed once, however often
      it was read.
    bad_examples: file that reading through SeqIO adds the problems to, or None.
    max_problem_share: the share of candidates that may be problems before the data count as broken.
  """

  # Field name → dtype of the examples; text is UTF-8 bytes.
  fields: Mapping[str, tf.DType]

  max_problem_share = 0.0

  def __init__(self, splits: Iterable[str], *, examples_per_shard: int):
    """Raises ValueError unless shards hold at least one example."""
    if examples_per_shard < 1:
      raise ValueError(f"{examples_per_shard=} must be at least 1")
    super().__init__(splits=splits)
    self.examples_per_shard = examples_per_shard
    self.dropped: Counter[str] = Counter()
    self.problems: list[Problem] = []
    self.bad_examples: Path | None = None

  @abc.abstractmethod
  def num_input_examples(self, split: str) -> int:
    """Number of candidates of a split; those dropped and the problems are among them."""

  @abc.abstractmethod
  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    """Yields the examples of candidates start…stop-1 in order, with the names of `fields`."""

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """JSON-ready facts that decide the examples; a cache made under other facts is not used."""

  def fingerprint(self) -> str:
    """SHA-256 of `describe()`, the split sizes and the shard size, in hex."""
    facts = {
      "candidates": {split: self.num_input_examples(split) for split in self.splits},
      "per_shard": self.examples_per_shard,
      **self.describe(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def shard_range(self, split: str, shard: int) -> tuple[int, int]:
    """First and one-past-last candidate of a shard."""
    start = shard * self.examples_per_shard
    return start, min(start + self.examples_per_shard, self.num_input_examples(split))

  def list_shards(self, split: str) -> list[str]:
    count = -(-self.num_input_examples(split) // self.examples_per_shard)
    return [f"{split}-{shard:05d}-of-{count:05d}" for shard in range(count)]

  def _report(self, split: str, new: Sequence[Problem]) -> None:
    """Names problems met in reading; raises UserError when they are too many."""
    if new and self.bad_examples:
      self.bad_examples.parent.mkdir(parents=True, exist_ok=True)
      with open(self.bad_examples, "a") as file:
        file.write(problem_lines(split, new))
    elif new:
      # Where many workers read, each has a log and none has the file.
      for problem in new:
        logging.warning("split %s: skipped %s", split, problem)
    if new:
      total = sum(self.num_input_examples(split) for split in self.splits)
      check_problems(self.problems, total, self.max_problem_share, f"split {split}")

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """The examples of every `shard_info.num_shards`-th shard; `shuffle` mixes the shards."""
    shards = np.arange(len(self.list_shards(split)))
    if shard_info:
      shards = shards[shard_info.index :: shard_info.num_shards]
    if shuffle:
      shards = np.random.default_rng(seed).permutation(shards)

    def examples() -> Iterator[Example]:
      known = set(self.problems)
      for shard in shards:
        before = len(self.problems)
        yield from self.make_examples(split, *self.shard_range(split, int(shard)))
        # A later epoch meets the same problems again.
        self.problems[before:] = new = [p for p in self.problems[before:] if p not in known]
        known.update(new)
        self._report(split, new)

    signature = {name: tf.TensorSpec([], dtype) for name, dtype in self.fields.items()}
    return tf.data.Dataset.from_generator(examples, output_signature=signature)
