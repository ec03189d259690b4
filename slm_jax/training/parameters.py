"""Parameter trees as flat `{path: leaf}` dicts, and their split into trained and frozen."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from slm_jax.errors import UserError

_BLOCK_ELEMENTS = 2**20


def flatten(tree: Mapping) -> dict:
  """Nested dicts of leaves -> `{"a/b/c": leaf}`, sorted by path."""
  return dict(sorted(traverse_util.flatten_dict(tree, sep="/").items()))


def unflatten(flat: Mapping) -> dict:
  """Inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(params: Mapping, trainable: str) -> tuple[dict, dict]:
  """Splits nested `params` into (trained, frozen) nested trees by a regex over whole paths.

  The frozen part is thereby absent from whatever is built on the trained one: gradient, optimiser state, checkpoint.

  Raises:
    UserError: the regex is malformed or matches no path.
  """
  flat = flatten(params)
  try:
    pattern = re.compile(trainable)
  except re.error as error:
    raise UserError(
      f"train.trainable={trainable!r} is not a regular expression: {error}"
    ) from error
  trained = {path: leaf for path, leaf in flat.items() if pattern.fullmatch(path)}
  if not trained:
    tops = sorted({path.split("/")[0] for path in flat})
    raise UserError(
      f"train.trainable={trainable!r} matches none of {len(flat)} parameters; they start with {tops}"
    )
  frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
  return unflatten(trained), unflatten(frozen)


def merge(trained: Mapping, frozen: Mapping) -> dict:
  """Joins what `split` separated."""
  return unflatten({**flatten(frozen), **flatten(trained)})


def count(params: Mapping) -> int:
  """Total number of scalars in a tree."""
  return sum(int(np.prod(leaf.shape)) for leaf in flatten(params).values())


def fingerprint(params: Mapping) -> str:
  """Names a tree of arrays by its paths, shapes, dtypes and bits, wherever the arrays are.

  Sums of integers are made where the shards lie and do not depend on how they lie; only these sums
  reach the host. A SHA-256 over them stands for the tree. It tells bases apart that were mistaken
  for each other: one changed element always changes it, any other difference all but surely. It is
  no defence against weights made to have a given fingerprint. With several processes all must call.

  Args:
    params: tree of arrays of at most 32 bits an element; those of the host, or of files, go to the
      device one at a time.
  """
  flat = flatten(params)
  # Every device is given its work before the first result is waited for.
  started = [_start_sums(leaf) for leaf in flat.values()]
  sums = np.stack([sum(map(np.asarray, s.parts), np.zeros(2, np.uint32)) for s in started])
  elsewhere = np.array([s.elsewhere for s in started])
  if elsewhere.any():
    of_all = np.asarray(multihost_utils.process_allgather(sums))
    sums = np.where(elsewhere[:, None], of_all.sum(axis=0, dtype=np.uint32), sums)
  digest = hashlib.sha256()
  for path, one, (first, second) in zip(flat, started, sums.tolist(), strict=True):
    digest.update(f"{path} {one.kind} {first:08x}{second:08x}\n".encode())
  return digest.hexdigest()


class _Sums(NamedTuple):
  """Sums of an array that devices are making, and what it is."""

  kind: str  # shape and type
  parts: list[jax.Array]
  elsewhere: bool  # shards are with other processes


def _start_sums(leaf: Any) -> _Sums:
  array = leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.asarray(leaf))
  parts = _shard_sums(array)
  if array is not leaf:
    jax.block_until_ready(parts)  # before the next one is read
  kind = f"{tuple(array.shape)} {array.dtype}"
  return _Sums(kind, parts, not array.is_fully_addressable)


def _shard_sums(leaf: jax.Array) -> list[jax.Array]:
  """uint32 [2] of every shard that is this process's to count."""
  shape = leaf.shape if leaf.ndim > 1 else (1, leaf.size)
  strides = [math.prod(shape[axis + 1 : -1]) for axis in range(len(shape) - 1)]
  parts = []
  for shard in leaf.addressable_shards:
    # Of replicas, which may be on several processes, one counts.
    if shard.replica_id != 0:
      continue
    index = shard.index if leaf.ndim > 1 else (slice(0, 1), *(shard.index or (slice(0, 1),)))
    ranges = [range(*one.indices(size)) for one, size in zip(index, shape, strict=True)]
    rows = np.zeros((), np.uint32)
    for axis, stride in enumerate(strides):
      rows = rows[..., None] + np.asarray(ranges[axis], np.uint32) * np.uint32(stride % 2**32)
    parts.append(_two_sums(shard.data, rows.reshape(-1), np.uint32(ranges[-1].start)))
  return parts


@jax.jit
def _two_sums(data: jax.Array, rows: jax.Array, first_column: jax.Array) -> jax.Array:
  """Two sums modulo 2**32 over the bits of `data`, each mixed with their position in another way.

  Args:
    data: [..., C].
    rows: uint32, for every index of the leading axes its row in the whole array.
    first_column: uint32 [], column of the whole array at which `data` begins.
  """
  data = data.reshape(len(rows), data.shape[-1] if data.ndim else 1)
  columns = first_column + jnp.arange(data.shape[1], dtype=jnp.uint32)
  data = jax.lax.bitcast_convert_type(data, jnp.dtype(f"uint{8 * data.dtype.itemsize}"))

  def of(data: jax.Array, rows: jax.Array) -> jax.Array:
    bits = data.astype(jnp.uint32)
    first = _mix(_mix(rows + jnp.uint32(0x9E3779B9))[:, None] + columns)
    second = _mix(_mix(rows ^ jnp.uint32(0x7F4A7C15))[:, None] ^ (columns * jnp.uint32(0x9E3779B1)))
    return jnp.stack([jnp.sum(_mix(bits + first)), jnp.sum(_mix(bits ^ second))])

  # In blocks, because XLA on CPUs holds what is summed.
  block = max(1, min(len(rows), _BLOCK_ELEMENTS // max(1, data.shape[1])))
  count = len(rows) // block

  def add(i: jax.Array, sums: jax.Array) -> jax.Array:
    slices = (jax.lax.dynamic_slice_in_dim(x, i * block, block) for x in (data, rows))
    return sums + of(*slices)

  sums = jax.lax.fori_loop(0, count, add, jnp.zeros(2, jnp.uint32))
  return sums + of(data[count * block :], rows[count * block :])


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every bit of the result depends on all: MurmurHash3's last step."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
