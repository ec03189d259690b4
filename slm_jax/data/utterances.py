"""The audio of a task's split, once, as training hears it."""

import itertools
from collections.abc import Iterator

import numpy as np
import seqio

from slm_jax.errors import UserError

_COMPARED = 4


def utterances(
  task: seqio.Task, split: str, *, seed: int = 0, share: int = 0, num_shares: int = 1
) -> Iterator[np.ndarray]:
  """int16 samples [S] of every example of one of `num_shares` disjoint shares, in the order of the data."""
  dataset = task.get_dataset(
    None,
    split,
    use_cached=task.supports_caching,
    shuffle=False,
    seed=seed,
    shard_info=seqio.ShardInfo(share, num_shares) if num_shares > 1 else None,
    num_epochs=1,
    trim_output_features=False,
    try_in_mem_cache=False,
  )
  for example in dataset.as_numpy_iterator():
    yield example["audio"]


def check_repeatable(task: seqio.Task, split: str) -> None:
  """Raises UserError if the task's audio depends on a random seed: what is kept of it would never be met again."""
  first, second = (
    list(itertools.islice(utterances(task, split, seed=seed), _COMPARED)) for seed in (1, 2)
  )
  if any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
    raise UserError(
      f"task {task.name} alters its audio at random, so that frames kept of it would never be heard again; remove "
      "the augmentation from its preprocessors, or train without train.frame_cache"
    )
