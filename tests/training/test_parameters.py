"""Splitting parameter trees by regex."""

import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.training import parameters

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
    {"a": np.full((2, 3), 1e-30, np.float32)},
  ]
  assert len({parameters.fingerprint(v) for v in variants}) == len(variants)
  assert parameters.fingerprint(base) == parameters.fingerprint({"a": np.zeros((2, 3), np.float32)})
