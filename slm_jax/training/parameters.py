"""Parameter trees as flat `{path: leaf}` dicts, and their split into trained and frozen."""

import hashlib
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from slm_jax.errors import UserError


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
  no defence against weights made to have a given fingerprint.

  Args:
    params: tree of arrays of at most 32 bits an element, on one set of devices.
  """
  flat = flatten(params)
  digest = hashlib.sha256()
  for (path, leaf), sums in zip(flat.items(), _sums(list(flat.values())), strict=True):
    first, second = (int(one) for one in sums)
    digest.update(f"{path} {tuple(leaf.shape)} {leaf.dtype} {first:08x}{second:08x}\n".encode())
  return digest.hexdigest()


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
  """Two sums of every array's bits, modulo 2**32, each mixed with its position in another way."""
  return [_two_sums(leaf) for leaf in leaves]


def _two_sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
  first, second = jnp.uint32(0x9E3779B9), jnp.uint32(0x7F4A7C15)
  for axis in range(leaf.ndim):
    position = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    first = _mix(first + position)
    second = _mix(second ^ (position * jnp.uint32(0x9E3779B1)))
  return jnp.sum(_mix(bits + first)), jnp.sum(_mix(bits ^ second))


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every bit of the result depends on all: MurmurHash3's last step."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
