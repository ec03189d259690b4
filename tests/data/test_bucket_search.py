"""Shapes found for lengths: they hold what they were found for and leave little padding."""

import numpy as np
import pytest

from slm_jax.data import length_buckets
from slm_jax.data.bucket_search import compare, padding, search, suggest
from slm_jax.errors import UserError

LENGTHS = {"audio": 480_000, "inputs": 16, "targets": 181}


def realistic_mix(count, seed):
  """Log-normal durations (median 6 s, sigma 0.6) in 1–30 s, 3.5 ± 0.5 target tokens a second, three
  instructions of 6, 9 and 14 tokens."""
  rng = np.random.default_rng(seed)
  seconds = np.clip(rng.lognormal(np.log(6), 0.6, count), 1, 30)
  rates = np.clip(rng.normal(3.5, 0.5, count), 2, 6)
  instructions = rng.choice([6, 9, 14], count)
  targets = np.ceil(seconds * rates).astype(int) + 1
  return np.stack([(seconds * 16_000).astype(int), instructions, targets], axis=1)


def test_padding_is_counted():
  shares = padding(np.array([[16_000, 5, 5]] * 2), np.array([[16_000, 5, 5], [8_000, 0, 0]]), 10.0)
  assert shares["audio"] == pytest.approx(0.25)
  assert shares["lm"] == pytest.approx(1 - 25 / 40)


def test_as_many_shapes_as_there_are_lengths_leave_no_padding():
  kinds = np.array([[16_000, 4, 9], [16_000, 4, 30], [32_000, 4, 9], [48_000, 4, 40]])
  sizes = np.repeat(kinds, [5, 1, 3, 2], axis=0)
  lengths = {"audio": 48_000, "inputs": 4, "targets": 40}
  assert compare(sizes, search(sizes, lengths, 5))["buckets"] == {"audio": 0.0, "lm": 0.0}
  assert search(sizes, lengths, 1) == [lengths]


def test_a_realistic_mix_of_examples_that_the_search_has_not_seen():
  sizes, others = realistic_mix(4_000, 0), realistic_mix(8_000, 1)
  before = {"audio": 1.0, "lm": 1.0}
  for count in (2, 8, 24):
    buckets = search(sizes, LENGTHS, count)
    length_buckets.check(buckets, LENGTHS)
    assert len(buckets) <= count
    found = compare(others, buckets)
    assert found["buckets"]["audio"] < before["audio"] and found["buckets"]["lm"] < before["lm"]
    before = found["buckets"]
  assert before["audio"] <= 0.08 and before["lm"] <= 0.18
  assert found["longest"]["lm"] > 0.7 and found["random"]["lm"] > 0.6


def test_suggestion_is_gin_of_the_declared_features():
  sizes = realistic_mix(300, 0)
  text = suggest(sizes * [1, 0, 1], {"audio": 480_000, "targets": 181}, 4)
  assert "DatasetConfig.length_buckets = (" in text and "%TASK_FEATURE_LENGTHS" in text
  assert "inputs" not in text
  with pytest.raises(UserError, match="no example is within"):
    suggest(sizes, {"audio": 10, "targets": 1}, 4)
