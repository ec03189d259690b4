"""Two bundles over the tiny bases, untrained: what they say is noise, and always the same noise."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from slm_jax.bundle.checksums import SUMS, write_sums
from slm_jax.bundle.manifest import WEIGHTS
from slm_jax.bundle.writing import export_bundle
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training.config import FakeDatasetConfig
from slm_jax.training.recipes import AdapterRecipe
from tests.untrained_runs import save_untrained

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
  recipe = AdapterRecipe(**tiny_bases, adapter=adapter)
  checkpoint = save_untrained(recipe, folder / "run", DATASET)
  one, two = folder / "one", folder / "two"
  export_bundle(recipe, checkpoint, one, max_samples=4000, instructions=INSTRUCTIONS)
  shutil.copytree(one, two)
  rng = np.random.default_rng(0)
  weights = safetensors.numpy.load_file(two / WEIGHTS)
  shaken = {k: w + rng.normal(size=w.shape).astype(np.float32) for k, w in weights.items()}
  safetensors.numpy.save_file(shaken, two / WEIGHTS)
  (two / SUMS).unlink()
  write_sums(two)
  return {"one": str(one), "two": str(two)}


@pytest.fixture(scope="session")
def noises() -> list[np.ndarray]:
  """Sixteen sounds of up to a quarter of a second, int16 at 16 kHz."""
  rng = np.random.default_rng(0)
  return [rng.integers(-9000, 9000, rng.integers(800, 4001)).astype(np.int16) for _ in range(16)]
