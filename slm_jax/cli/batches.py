"""Opens the batches a run asks for; TensorFlow is imported only when a SeqIO task is named."""

import argparse

import jax

from slm_jax.errors import UserError
from slm_jax.training.checkpoints import Batches
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches


def open_batches(config: TrainConfig, flags: argparse.Namespace) -> Batches:
  """This process's share of the training data.

  Raises:
    UserError: unknown task or module, or a batch that does not split over the processes.
  """
  dataset = config.train_dataset
  if isinstance(dataset, FakeDatasetConfig):
    return FakeBatches(dataset)
  if dataset.batch_size % jax.process_count():
    raise UserError(
      f"BATCH_SIZE={dataset.batch_size} is not a multiple of {jax.process_count()} processes"
    )
  from slm_jax.data import registry
  from slm_jax.data.batches import TrainBatches

  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  registry.find(dataset.mixture_or_task_name, dataset.mixture_or_task_module)
  registry.fill_caches(dataset.mixture_or_task_name, num_processes=dataset.cache_processes)
  return TrainBatches(
    dataset.mixture_or_task_name,
    task_feature_lengths=dataset.task_feature_lengths,
    batch_size=dataset.batch_size // jax.process_count(),
    seed=dataset.seed,
    split=dataset.split,
    shard_index=jax.process_index(),
    num_shards=jax.process_count(),
    buckets=dataset.length_buckets,
  )
