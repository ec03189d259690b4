"""Parameter trees as flat `{path: leaf}` dicts, and their split into trained and frozen."""

import hashlib
import re
from collections.abc import Mapping

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
  """SHA-256 over the paths, shapes, dtypes and bytes of a tree of host arrays."""
  digest = hashlib.sha256()
  for path, leaf in flatten(params).items():
    array = np.ascontiguousarray(leaf)
    digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()
