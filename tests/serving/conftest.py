"""Two bundles over the tiny bases, untrained: what they say is noise, and always the same noise."""

import dataclasses

import numpy as np
import pytest

from slm_jax.bundle.writing import export_bundle
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import checkpoint_folder

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 4000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
)
INSTRUCTIONS = {"default": "abdei", "transcribe": "lisa", "translate": "ab {target}"}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, tiny_bases) -> dict[str, str]:
  """Name → folder of bundles "one" and "two"."""
  folder = tmp_path_factory.mktemp("served")
  adapter = AdapterConfig(
    num_layers=1,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    length_reduction=LengthReductionConfig(kind="stack", factor=2),
  )
  found = {}
  for seed, name in enumerate(("one", "two")):
    config = TrainConfig(
      model_dir=str(folder / f"run_{name}"),
      model=AdapterRecipe(**tiny_bases, adapter=adapter),
      train_dataset=DATASET,
      optimizer=OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay="constant"),
      total_steps=1,
      random_seed=seed,
    )
    train(config, FakeBatches(dataclasses.replace(DATASET, seed=seed)))
    checkpoint = checkpoint_folder(config.model_dir)
    found[name] = str(
      export_bundle(
        config.model,
        checkpoint,
        folder / name,
        max_samples=4000,
        instructions=INSTRUCTIONS,
      )
    )
  return found


@pytest.fixture(scope="session")
def noises() -> list[np.ndarray]:
  """Sixteen sounds of up to a quarter of a second, int16 at 16 kHz."""
  rng = np.random.default_rng(0)
  return [rng.integers(-9000, 9000, rng.integers(800, 4001)).astype(np.int16) for _ in range(16)]
