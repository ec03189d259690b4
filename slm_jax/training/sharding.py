"""The device mesh, and how a batch lies on it; for parameters see `slm_jax.models.partitioning`."""

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slm_jax.errors import UserError
from slm_jax.models.partitioning import BATCH_AXES

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(BATCH_AXES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the mesh axes; one of them may be -1 for "all devices that are left"."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    if sum(size == -1 for size in sizes) > 1 or any(size < 1 and size != -1 for size in sizes):
      raise ValueError(
        f"mesh axes (data, fsdp, tensor) = {sizes}: expected positive sizes, at most one of them -1"
      )


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
  """Builds the mesh `(data, fsdp, tensor)` over `devices` (default: all).

  Neighbours on a mesh axis are neighbours on a TPU's wires. Of several slices each is a part of the
  `data` axis, so that only the adapter's gradient crosses the network between them.

  Raises:
    UserError: the sizes do not fit the devices, or `data` does not divide over the slices.
  """
  devices = devices if devices is not None else jax.devices()
  sizes = [config.data, config.fsdp, config.tensor]
  known = math.prod(size for size in sizes if size != -1)
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    raise UserError(
      f"mesh (data, fsdp, tensor) = {tuple(sizes)} does not fit {len(devices)} devices: the product must be "
      f"their number; change MeshConfig.data, .fsdp or .tensor"
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  slices = len({getattr(device, "slice_index", None) for device in devices})
  if sizes[0] % slices:
    raise UserError(
      f"mesh data = {sizes[0]} does not divide over {slices} slices, each of which holds whole models; set "
      f"MeshConfig.data={slices} or a multiple"
    )
  return Mesh(_arranged(devices, sizes, slices), MESH_AXES)


def _arranged(devices: list, sizes: list[int], slices: int) -> np.ndarray:
  if slices > 1:
    within = [sizes[0] // slices, *sizes[1:]]
    return mesh_utils.create_hybrid_device_mesh(
      within, [slices, 1, 1], devices, allow_split_physical_axes=True
    )
  if devices[0].platform == "tpu":
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return np.asarray(devices).reshape(sizes)


def mesh_of_several(config: MeshConfig) -> Mesh | None:
  """`make_mesh` over all devices, or None where there is but one."""
  return make_mesh(config) if jax.device_count() > 1 else None


def batch_shards(mesh: Mesh) -> int:
  """Number of pieces a batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(
  batch_size: int, mesh: Mesh, num_microbatches: int = 1, examples_per_lm_row: int = 1
) -> None:
  """Raises UserError unless every microbatch splits evenly over the mesh, in whole rows of the LM."""
  shards = batch_shards(mesh) * num_microbatches * examples_per_lm_row
  if batch_size % shards:
    together = f" x {examples_per_lm_row} examples in a row of the LM" * (examples_per_lm_row > 1)
    raise UserError(
      f"BATCH_SIZE={batch_size} is not a multiple of {shards} (mesh data {mesh.shape['data']} x fsdp "
      f"{mesh.shape['fsdp']} x {num_microbatches} microbatches{together}); change BATCH_SIZE or the mesh"
    )


def process_rows(
  mesh: Mesh, batch_size: int, process_index: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of a batch on a process's devices, and those of them that no process before it has, growing.

  With a tensor axis across processes several hold the same rows; each row is one process's own.
  """
  index = jax.process_index() if process_index is None else process_index
  sharding = NamedSharding(mesh, BATCH_SPEC)
  rows_of: dict[int, set[int]] = {}
  for device, (rows,) in sharding.devices_indices_map((batch_size,)).items():
    rows_of.setdefault(device.process_index, set()).update(range(*rows.indices(batch_size)))
  mine = rows_of.get(index, set())
  before = set().union(*(rows for process, rows in rows_of.items() if process < index))
  return np.array(sorted(mine), np.int64), np.array(sorted(mine - before), np.int64)


def shard_batch(batch, mesh: Mesh, batch_size: int):
  """Joins every process's rows, as of `process_rows`, into global arrays split over `data` x `fsdp`."""
  sharding = NamedSharding(mesh, BATCH_SPEC)
  rows, _ = process_rows(mesh, batch_size)

  def join(x: np.ndarray) -> jax.Array:
    def shard(index) -> np.ndarray:
      first, end, _ = index[0].indices(batch_size)
      start = np.searchsorted(rows, first)
      return x[start : start + end - first]

    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, shard)

  return jax.tree.map(join, batch)
