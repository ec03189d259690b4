"""Endless fake batches, for machines without data or TensorFlow."""

import json
from pathlib import Path

import numpy as np

from slm_jax.batch import Batch
from slm_jax.training.config import FakeDatasetConfig


class FakeBatches:
  """`Batch.fake` with the batch's number as seed; the position is that number."""

  def __init__(self, config: FakeDatasetConfig):
    self._config = config
    self._index = 0
    self.skipped: dict[str, int] = {}

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
    self._index += 1
    return vars(batch)

  def save(self, directory: str) -> None:
    """Writes the position."""
    (Path(directory) / "index.json").write_text(json.dumps(self._index))

  def restore(self, directory: str) -> None:
    """Moves to a written position."""
    self._index = json.loads((Path(directory) / "index.json").read_text())
