"""Where every parameter lives on a device mesh.

Logical axis names stand at the parameters; `RULES` maps each to a mesh axis. A name without a rule is an
error, because Flax would replicate such a parameter without a word.
"""

import math

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
  "codebooks": None,
  "positions": None,
  "lora_rank": None,
}


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


# Mesh axes that split the rows of a batch.
BATCH_AXES = ("data", "fsdp")


def keep_rows_apart(x: jax.Array) -> jax.Array:
  """Pins activations [B, ...] to the devices that own their rows, on the mesh of `jax.set_mesh`.

  Left alone, the partitioner may take over the embedding's split of D over `fsdp` instead: every
  device then computes all rows in part, and activations travel where weights should. Without a mesh,
  or with rows that do not divide, nothing is changed.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  shards = math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
  if shards == 1 or x.shape[0] % shards:
    return x
  spec = PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in sizes))
  return jax.lax.with_sharding_constraint(x, spec)


def parameter_shardings(boxed, mesh: Mesh):
  """Shardings of a tree of logically partitioned (boxed) abstract parameters, unboxed in shape."""

  def one(leaf) -> NamedSharding:
    if not isinstance(leaf, nn.LogicallyPartitioned):
      raise ValueError(f"a parameter of shape {leaf.shape} has no logical axis names")
    return NamedSharding(mesh, resolve(leaf.names, leaf.value.shape, mesh))

  return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
