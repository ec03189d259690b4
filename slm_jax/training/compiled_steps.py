"""The train step compiled for the batch shapes that a run declares, and for no other."""

import math
import time
from collections.abc import Callable

import jax

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.training.host_memory import release_freed
from slm_jax.training.step import TrainState


class CompiledSteps:
  """The train step compiled ahead of time, once for each declared batch shape.

  Raises UserError when a batch of one shape more than declared arrives: such a run would go on compiling.
  """

  def __init__(
    self, step: Callable, state: TrainState, *, max_shapes: int, report: Callable[[str], None]
  ):
    # A step leaves the state where it was. Left to itself the compiler may choose other shardings or drop the names of
    # mesh axes of size 1; every shape compiled later would then be another program, unknown to the compilation cache.
    shardings = jax.tree.map(lambda x: x.sharding, state)
    self._jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    self._mesh = shardings.step.mesh
    self._compiled: dict[tuple, jax.stages.Compiled] = {}
    self._max_shapes = max_shapes
    self._report = report
    self.memory: dict[str, int] = {}

  def __call__(self, state: TrainState, frozen: dict, batch: Batch):
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    key = shapes, batch.lm_rows
    if key not in self._compiled:
      self._compiled[key] = self._compile(shapes, state, frozen, batch)
    return self._compiled[key](state, frozen, batch)

  @property
  def programs(self) -> list[jax.stages.Compiled]:
    """What was compiled so far, a program for each batch shape."""
    return list(self._compiled.values())

  def _compile(
    self, shapes: tuple, state: TrainState, frozen: dict, batch: Batch
  ) -> jax.stages.Compiled:
    if len(self._compiled) == self._max_shapes:
      raise UserError(
        f"a batch of shapes {shapes} came after {self._max_shapes} declared ones; add it to "
        "DatasetConfig.length_buckets"
      )
    began = time.perf_counter()
    with jax.set_mesh(self._mesh):  # the model pins its activations to the mesh
      compiled = self._jitted.lower(state, frozen, batch).compile()
    release_freed()
    memory = compiled.memory_analysis()
    assert memory is not None, "every XLA back end analyses its memory"
    sizes = {
      "argument_bytes": memory.argument_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes,
    }
    self.memory = {k: max(v, self.memory.get(k, 0)) for k, v in sizes.items()}
    self._report(
      f"train step compiled in {time.perf_counter() - began:.1f} s for batch {max(shapes, key=math.prod)}; the "
      f"compiler's memory per device: arguments {sizes['argument_bytes'] / 2**20:.1f} MiB, temporaries "
      f"{sizes['temporary_bytes'] / 2**20:.1f} MiB"
    )
    return compiled
