"""Shapes found for lengths: they hold what they were found for and leave little padding."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from slm_jax.data import batches, length_buckets, packed_bucket_search
from slm_jax.data.bucket_search import (
  POSITIONS_PER_SECOND,
  compare,
  padding,
  search,
  suggest,
)
from slm_jax.errors import UserError

LENGTHS = {"audio": 480_000, "inputs": 16, "targets": 181}
PROVIDER = SimpleNamespace(output_features=dict.fromkeys(LENGTHS), name="mix")


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


class Rows:
  """Stands for a share's stream: rows of the mix's lengths, of nothing."""

  def __init__(self, provider, lengths, *, shard, seed, **unused):
    self._sizes = iter(realistic_mix(20_000, 2 + 10 * seed + shard.index))
    self.skipped = np.zeros(len(lengths), np.int64)

  def __next__(self):
    sizes = next(self._sizes)
    row = {
      "audio_lengths": np.asarray(sizes[0], np.int32),
      "encoder_input_tokens": np.ones(sizes[1], np.int32),
      "decoder_target_tokens": np.ones(sizes[2], np.int32),
    }
    return row, sizes


@pytest.mark.parametrize("num_shards", [1, 4])
def test_batches_have_the_padding_that_was_foretold(monkeypatch, num_shards):
  monkeypatch.setattr(batches, "open_provider", lambda *unused: PROVIDER)
  monkeypatch.setattr(batches, "contents", lambda *unused: {})
  monkeypatch.setattr(batches, "ShareStream", Rows)
  buckets = search(realistic_mix(4_000, 0), LENGTHS, 24)
  run = batches.TrainBatches(
    "mix", task_feature_lengths=LENGTHS, batch_size=32, num_shards=num_shards, buckets=buckets
  )
  shapes, sizes = [], []
  for _ in range(300):
    batch = next(run)
    tokens = [batch[name] for name in ("encoder_input_tokens", "decoder_target_tokens")]
    # Nothing but the shapes tells of the bucket, and audio has none here: the smallest that holds all.
    longest = batch["audio_lengths"].max()
    audio = min(
      b["audio"]
      for b in buckets
      if (b["inputs"], b["targets"]) == tuple(x.shape[1] for x in tokens) and b["audio"] >= longest
    )
    shapes += [[audio, *(x.shape[1] for x in tokens)]] * 32
    sizes += [
      [length, *row]
      for length, *row in zip(
        batch["audio_lengths"], *(np.count_nonzero(x, axis=1) for x in tokens), strict=True
      )
    ]
  found = padding(np.asarray(shapes), np.asarray(sizes), POSITIONS_PER_SECOND)
  foretold = compare(realistic_mix(9_600, 2), buckets)["buckets"]
  assert found["audio"] <= 0.08
  for name in found:  # late rows that join longer batches cost a little
    assert found[name] == pytest.approx(foretold[name], abs=0.02)


def test_shared_rows_of_the_lm_leave_little_padding():
  sizes, others = realistic_mix(4_000, 0), realistic_mix(8_000, 1)
  for count, examples in ((24, 4), (20, 8)):
    buckets = packed_bucket_search.search(sizes, LENGTHS, count, examples, POSITIONS_PER_SECOND)
    assert len(buckets) <= count
    length_buckets.check([{name: b[name] for name in LENGTHS} for b in buckets], LENGTHS)
    found = packed_bucket_search.padding(others, buckets, examples, POSITIONS_PER_SECOND)
    assert found["audio"] <= 0.08 and found["lm"] <= 0.06
  one = packed_bucket_search.search(sizes, LENGTHS, 1, 4, POSITIONS_PER_SECOND)
  assert [{name: b[name] for name in LENGTHS} for b in one] == [LENGTHS]


@pytest.mark.parametrize("num_shards", [1, 4])
def test_batches_of_shared_rows_have_the_padding_that_was_foretold(monkeypatch, num_shards):
  monkeypatch.setattr(batches, "open_provider", lambda *unused: PROVIDER)
  monkeypatch.setattr(batches, "contents", lambda *unused: {})
  monkeypatch.setattr(batches, "ShareStream", Rows)
  buckets = packed_bucket_search.search(
    realistic_mix(4_000, 0), LENGTHS, 24, 4, POSITIONS_PER_SECOND
  )
  run = batches.TrainBatches(
    "mix",
    task_feature_lengths=LENGTHS,
    batch_size=32,
    num_shards=num_shards,
    buckets=buckets,
    examples_per_lm_row=4,
    speech_positions=lambda n, _: math.ceil(n * POSITIONS_PER_SECOND / 16_000),
  )
  audio_of = {b["lm_inputs"]: b["audio"] for b in buckets}
  assert len(audio_of) == len(buckets)
  real, places = np.zeros(2), np.zeros(2)
  for _ in range(300):
    batch = next(run)
    rows, lengths = batch["lm_rows"], batch["audio_lengths"]
    tokens = [batch[name] for name in ("encoder_input_tokens", "decoder_target_tokens")]
    speech = np.ceil(lengths * POSITIONS_PER_SECOND / 16_000)
    real += lengths.sum(), speech.sum() + sum(np.count_nonzero(x) for x in tokens)
    places += 32 * audio_of[rows.inputs], 8 * (rows.inputs + rows.targets)
  found = 1 - real / places
  assert found[0] <= 0.08 and found[1] <= 0.08


def test_suggestion_is_gin_of_the_declared_features():
  sizes = realistic_mix(300, 0)
  text = suggest(sizes * [1, 0, 1], {"audio": 480_000, "targets": 181}, 4)
  assert "DatasetConfig.length_buckets = (" in text and "%TASK_FEATURE_LENGTHS" in text
  assert "inputs" not in text
  with pytest.raises(UserError, match="no example is within"):
    suggest(sizes, {"audio": 10, "targets": 1}, 4)
