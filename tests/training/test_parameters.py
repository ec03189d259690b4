"""Splitting parameter trees by regex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.errors import UserError
from slm_jax.interop.placement import place
from slm_jax.training import parameters, sharding

TREE = {"adapter": {"w": np.ones(2)}, "lm": {"w": np.ones(3), "v": {"x": np.ones(4)}}}


def test_split_and_merge_are_inverse():
  trained, frozen = parameters.split(TREE, "adapter/.*|lm/v/.*")
  assert parameters.flatten(trained).keys() == {"adapter/w", "lm/v/x"}
  assert parameters.flatten(frozen).keys() == {"lm/w"}
  merged = parameters.merge(trained, frozen)
  assert parameters.flatten(merged).keys() == parameters.flatten(TREE).keys()
  assert parameters.count(merged) == 9


@pytest.mark.parametrize("regex", ["adaptor/.*", "adapter", "("])
def test_regex_that_matches_no_whole_path_is_refused(regex):
  with pytest.raises(UserError, match="trainable"):
    parameters.split(TREE, regex)


def test_fingerprint_sees_every_kind_of_change():
  base = {"a": np.zeros((2, 3), np.float32)}
  variants = [
    base,
    {"b": np.zeros((2, 3), np.float32)},
    {"a": np.zeros((3, 2), np.float32)},
    {"a": np.zeros((2, 3), np.int32)},
    {"a": np.zeros((2, 3), jnp.bfloat16)},
    {"a": np.full((2, 3), 1e-30, np.float32)},
    {"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.float32)},
    {"a": np.zeros((), np.float32)},
  ]
  assert len({parameters.fingerprint(v) for v in variants}) == len(variants)
  assert parameters.fingerprint(base) == parameters.fingerprint({"a": np.zeros((2, 3), np.float32)})


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def weights(request) -> np.ndarray:
  return np.random.default_rng(0).integers(-99, 99, (4, 6, 8)).astype(request.param)


@pytest.mark.parametrize("elements", [1, 20])
def test_fingerprint_does_not_depend_on_where_the_shards_lie(weights, monkeypatch, elements):
  expected = parameters.fingerprint({"x": weights, "v": weights[0, 0]})
  monkeypatch.setattr(parameters, "_BLOCK_ELEMENTS", elements)
  jax.clear_caches()
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
  for spec in ((), (None, "tensor", "fsdp"), (("data", "fsdp"), "tensor")):
    placed = place(weights, NamedSharding(mesh, PartitionSpec(*spec)))
    vector = place(weights[0, 0], NamedSharding(mesh, PartitionSpec(*spec[-1:])))
    assert parameters.fingerprint({"x": placed, "v": vector}) == expected, spec


def test_fingerprint_sees_one_flipped_bit_and_two_swapped_elements(weights):
  expected = parameters.fingerprint({"x": weights})
  seen = {expected}
  rng = np.random.default_rng(1)
  for _ in range(20):
    flipped = weights.copy()
    raw = flipped.reshape(-1).view(np.uint8)
    raw[rng.integers(raw.size)] ^= 1 << rng.integers(8)
    seen.add(parameters.fingerprint({"x": flipped}))
  flat = weights.reshape(-1)
  for _ in range(20):
    i, j = rng.choice(flat.size, 2, replace=False)
    if flat[i] != flat[j]:
      swapped = flat.copy()
      swapped[[i, j]] = swapped[[j, i]]
      assert parameters.fingerprint({"x": swapped.reshape(weights.shape)}) not in seen
  for axis in range(3):
    assert parameters.fingerprint({"x": np.flip(weights, axis)}) not in seen
  assert len(seen) > 15 and expected == parameters.fingerprint({"x": weights})
