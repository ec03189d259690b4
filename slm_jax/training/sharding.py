"""The device mesh and where every array lives on it.

Logical axis names stand at the parameters; `RULES` maps each to a mesh axis. A name without a rule is an
error, because Flax would replicate such a parameter without a word.
"""

import dataclasses
import math

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))

# logical axis of a parameter -> mesh axis that splits it (None: every device holds the whole axis)
RULES: dict[str, str | None] = {
  "vocab": "tensor",
  "embed": "fsdp",
  "mlp": "tensor",
  "heads": "tensor",
  "joined_kv": "tensor",
  "kv": None,
  "relpos_buckets": None,
  "layers": None,
  "mel": None,
  "conv_height": None,
  "conv_width": None,
  "conv_in": None,
  "conv_out": None,
  "conv_kernel": None,
  "frames_in": None,
}


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
  """Builds the mesh `(data, fsdp, tensor)` over `devices` (default: all); raises UserError if they do not fit."""
  devices = devices if devices is not None else jax.devices()
  sizes = [config.data, config.fsdp, config.tensor]
  known = math.prod(size for size in sizes if size != -1)
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    raise UserError(
      f"mesh (data, fsdp, tensor) = {tuple(sizes)} does not fit {len(devices)} devices: the product must be "
      f"their number; change MeshConfig.data, .fsdp or .tensor"
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def batch_shards(mesh: Mesh) -> int:
  """Number of pieces a batch is split into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(batch_size: int, mesh: Mesh, num_microbatches: int = 1) -> None:
  """Raises UserError unless every microbatch splits evenly over the mesh."""
  shards = batch_shards(mesh) * num_microbatches
  if batch_size % shards:
    raise UserError(
      f"BATCH_SIZE={batch_size} is not a multiple of {shards} (mesh data {mesh.shape['data']} x fsdp "
      f"{mesh.shape['fsdp']} x {num_microbatches} microbatches); change BATCH_SIZE or the mesh"
    )


def resolve(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Maps a parameter's logical axes to a PartitionSpec.

  An axis whose size the mesh axis does not divide stays whole, and so does a second axis that asks for the same
  mesh axis. Raises ValueError for a logical name that has no rule.
  """
  unknown = [axis for axis in axes if axis is not None and axis not in RULES]
  if unknown:
    raise ValueError(f"no partition rule for logical axes {unknown}; known: {sorted(RULES)}")
  spec: list[str | None] = []
  for axis, size in zip(axes, shape, strict=True):
    target = RULES[axis] if axis is not None else None
    if target is not None and (size % mesh.shape[target] or target in spec):
      target = None
    spec.append(target)
  return PartitionSpec(*spec)


def parameter_shardings(boxed, mesh: Mesh):
  """Shardings of a tree of logically partitioned (boxed) abstract parameters, unboxed in shape."""

  def one(leaf) -> NamedSharding:
    if not isinstance(leaf, nn.LogicallyPartitioned):
      raise ValueError(f"a parameter of shape {leaf.shape} has no logical axis names")
    return NamedSharding(mesh, resolve(leaf.names, leaf.value.shape, mesh))

  return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def place(array, sharding: NamedSharding) -> jax.Array:
  """Puts a host array that every process holds onto the mesh."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def shard_batch(batch, mesh: Mesh):
  """Joins every process's rows of a host batch into global arrays split over `data` x `fsdp`."""
  sharding = NamedSharding(mesh, BATCH_SPEC)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
