"""Checkpoints of runs at their start: what exports and servers need, without a step compiled."""

from pathlib import Path

import jax
from etils import epath

from slm_jax.batch import Batch
from slm_jax.training.checkpoints import Checkpoints
from slm_jax.training.config import FakeDatasetConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.optimizer import OptimizerConfig, make_optimizer
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import checkpoint_folder
from slm_jax.training.setup import prepare
from slm_jax.training.sharding import MeshConfig, make_mesh


def save_untrained(recipe: AdapterRecipe, folder: Path, dataset: FakeDatasetConfig) -> epath.Path:
  """Writes `folder`/checkpoint_1 with the adapter as it is initialised; returns the checkpoint."""
  batches = FakeBatches(dataset)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, decay="constant"), 1)
  batch = Batch.from_dict(next(batches))
  prepared = prepare(recipe.build(), batch, optimizer, mesh, 0)
  checkpoints = Checkpoints(folder, keep=1)
  checkpoints.save(1, prepared.state, batches, {"frozen": prepared.fingerprints})
  checkpoints.wait()
  checkpoints.close()
  return checkpoint_folder(folder)
