"""Rows of a batch from the host onto the devices of a mesh, and results back."""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slm_jax.models.partitioning import BATCH_AXES


class RowPlacement:
  """Spreads batches over a mesh; without one they go to the default device as they are."""

  def __init__(self, mesh: Mesh | None = None):
    self.mesh = mesh
    self.sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(BATCH_AXES))

  def spread(self, array: Any) -> jax.Array:
    """[B, …] on the host, the same on every process -> on the devices, B rounded up to their number.

    Rows that fill it up repeat the first: a decoder ends when every row has, and an empty row may
    babble until its limit.
    """
    if self.mesh is None or self.sharding is None:
      return jnp.asarray(array)
    array = np.asarray(array)
    shards = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
    if missing := -len(array) % shards:
      array = np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
    return jax.make_array_from_callback(array.shape, self.sharding, lambda index: array[index])

  def collect(self, tree: Any, rows: int) -> Any:
    """The first `rows` rows of every array, whole and in the memory of every process."""

    def one(x: jax.Array) -> np.ndarray:
      if not x.is_fully_addressable:
        x = multihost_utils.process_allgather(x, tiled=True)
      return np.asarray(x)[:rows]

    return jax.tree.map(one, tree)

  def active(self) -> contextlib.AbstractContextManager:
    """Around calls of compiled functions: models pin their rows to the mesh that is set."""
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
