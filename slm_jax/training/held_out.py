"""Loss on held-out batches during training."""

from collections.abc import Callable

import jax

from slm_jax.batch import Batch
from slm_jax.training import sharding
from slm_jax.training.checkpoints import METRIC, Batches
from slm_jax.training.objectives import Objective
from slm_jax.training.parameters import merge
from slm_jax.training.step import TrainState


class HeldOutLoss:
  """The mean loss, and accuracy where there is one, over the first batches of a held-out set.

  They are read once and stay in host memory: every call sees the same examples, and the position of
  the iterator need not be saved.
  """

  def __init__(
    self, objective: Objective, batches: Batches, *, num_batches: int, batch_size: int, mesh
  ):
    """`batches` gives this process's rows of batches of `batch_size` rows."""
    self._batches, self._num_batches = batches, num_batches
    self._batch_size, self._mesh = batch_size, mesh
    self._read: list[dict] = []

    def sums(params: dict, frozen: dict, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
      return objective.loss(merge(params, frozen), batch, rng, train=False)[1]

    self._sums: Callable = jax.jit(sums)

  def __call__(self, state: TrainState, frozen: dict) -> dict[str, float]:
    """`eval_loss` and, where the objective counts right tokens, `eval_accuracy`; all processes call."""
    while len(self._read) < self._num_batches:
      self._read.append(next(self._batches))
    totals: dict[str, float] = {}
    rng = jax.random.key(0)
    with jax.set_mesh(self._mesh):
      for arrays in self._read:
        batch = sharding.shard_batch(Batch.from_dict(arrays), self._mesh, self._batch_size)
        for name, value in self._sums(state.params, frozen, batch, rng).items():
          totals[name] = totals.get(name, 0.0) + float(value)
    weight = max(totals["weight"], 1.0)
    found = {METRIC: totals["loss"] / weight}
    if "correct" in totals:
      found["eval_accuracy"] = totals["correct"] / weight
    return found
