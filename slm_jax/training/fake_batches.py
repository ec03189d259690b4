"""Endless fake batches, for machines without data or TensorFlow."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from slm_jax.batch import Batch
from slm_jax.training.config import FakeDatasetConfig


class FakeBatches:
  """`Batch.fake` with the batch's number as seed; the position is that number."""

  def __init__(self, config: FakeDatasetConfig, rows: Sequence[int] | None = None):
    """`rows` of each batch that are wanted; None is all."""
    self._config = config
    self._rows = list(range(config.batch_size) if rows is None else rows)
    self._index = 0
    self.skipped: dict[str, int] = {}
    self.example_ids: list[str] = []
    self.facts: dict[str, str] = {}

  def __next__(self) -> dict[str, np.ndarray]:
    lengths = self._config.task_feature_lengths
    batch = Batch.fake(
      batch_size=self._config.batch_size,
      num_samples=lengths["audio"],
      prompt_length=lengths["inputs"],
      target_length=lengths["targets"],
      vocab_size=self._config.vocab_size,
      seed=self._config.seed * 1_000_003 + self._index,
    )
    self.example_ids = [f"fake-{self._index}-{row}" for row in self._rows]
    self._index += 1
    return {name: value[self._rows] for name, value in vars(batch).items() if value is not None}

  def save(self, directory: str) -> None:
    """Writes the position, which is the same for all processes."""
    if jax.process_index() == 0:
      (Path(directory) / "index.json").write_text(json.dumps(self._index))

  def restore(self, directory: str) -> None:
    """Moves to a written position."""
    self._index = json.loads((Path(directory) / "index.json").read_text())
