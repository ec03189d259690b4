"""Opens the batches a run asks for; TensorFlow is imported only when a SeqIO task is named."""

import argparse
import sys
from collections.abc import Callable

from slm_jax.errors import UserError
from slm_jax.training import sharding
from slm_jax.training.checkpoints import Batches
from slm_jax.training.config import DatasetConfig, FakeDatasetConfig, Recipe, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.processes import ALONE, Processes
from slm_jax.training.recipes import AdapterRecipe


def open_batches(
  config: TrainConfig, flags: argparse.Namespace, processes: Processes = ALONE
) -> Batches:
  """This process's rows of the training data.

  Raises:
    UserError: unknown task or module, or a batch that does not split over the mesh.
  """
  return _open(config.train_dataset, config, flags, processes)


def open_held_out(
  config: TrainConfig, flags: argparse.Namespace, processes: Processes = ALONE
) -> Batches | None:
  """The same of the held-out data, if the run has some."""
  if config.eval_dataset is None:
    return None
  return _open(config.eval_dataset, config, flags, processes)


def _open(
  dataset: DatasetConfig | FakeDatasetConfig,
  config: TrainConfig,
  flags: argparse.Namespace,
  processes: Processes,
) -> Batches:
  mesh = sharding.make_mesh(config.mesh)
  together = getattr(dataset, "examples_per_lm_row", 1)
  sharding.check_batch_size(dataset.batch_size, mesh, examples_per_lm_row=together)
  rows, own_rows = sharding.process_rows(mesh, dataset.batch_size)
  if isinstance(dataset, FakeDatasetConfig):
    return FakeBatches(dataset, rows.tolist())
  from slm_jax.data import registry
  from slm_jax.data.batches import TrainBatches

  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  registry.find(dataset.mixture_or_task_name, dataset.mixture_or_task_module)
  registry.fill_caches(dataset.mixture_or_task_name, num_processes=dataset.cache_processes)
  if dataset.num_shards % processes.count and processes.index == 0:
    print(
      f"[slm_jax] DatasetConfig.num_shards={dataset.num_shards} does not split over {processes.count} processes: "
      "some read what others read too",
      file=sys.stderr,
    )
  return TrainBatches(
    dataset.mixture_or_task_name,
    task_feature_lengths=dataset.task_feature_lengths,
    batch_size=dataset.batch_size,
    seed=dataset.seed,
    split=dataset.split,
    num_shards=dataset.num_shards,
    rows=rows.tolist(),
    own_rows=own_rows.tolist(),
    buckets=dataset.length_buckets,
    examples_per_lm_row=together,
    speech_positions=_speech_positions(config.model, together),
    gather=lambda value: processes.gather("length bucket", value),
  )


def _speech_positions(recipe: Recipe, examples_per_lm_row: int) -> Callable[[int, int], int]:
  if examples_per_lm_row == 1:
    return lambda samples, longest: 0
  if not isinstance(recipe, AdapterRecipe):
    raise UserError(
      f"DatasetConfig.examples_per_lm_row={examples_per_lm_row}: {type(recipe).__name__} has no LM that hears; "
      "set it to 1"
    )
  return recipe.speech_positions()
