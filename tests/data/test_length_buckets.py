"""Choosing buckets and waiting for them: nothing is lost, nothing waits for ever, batches are small."""

import numpy as np
import pytest

from slm_jax.data import length_buckets
from slm_jax.data.waiting_rows import WaitingRows

# Neither of the middle ones holds the other's rows.
BUCKETS = (
  {"audio": 10, "targets": 4},
  {"audio": 10, "targets": 9},
  {"audio": 30, "targets": 4},
  {"audio": 30, "targets": 9},
)
PATIENCE = 40


def row(number, audio, targets):
  tokens = np.full(targets, number % 7 + 1, np.int32)
  fields = {"audio": np.full(audio, number, np.int16), "audio_lengths": np.asarray(audio, np.int32)}
  return {**fields, "decoder_target_tokens": tokens}, np.array([audio, targets])


def batches(lengths, share_rows, count):
  """Numbers of each batch's rows [shares, share_rows], its bucket, and what waits then, over rows of
  (share, number) → (audio, targets)."""
  num_shares = len(lengths)
  shares = [WaitingRows(BUCKETS) for _ in range(num_shares)]
  for _ in range(count):
    while True:
      counts = np.array([share.counts() for share in shares])
      oldest = np.array([share.oldest() for share in shares])
      bucket = length_buckets.choose(counts, oldest, BUCKETS, share_rows, PATIENCE)
      if bucket is not None:
        break
      for share, sizes in zip(shares, lengths, strict=True):
        for _ in range(share_rows):
          share.add(*row(share.read, *sizes(share.read)))
    rows = [share.take(bucket, share_rows, PATIENCE) for share in shares]
    yield rows, bucket, shares


def test_a_row_takes_the_first_bucket_that_holds_it():
  sizes = np.array([[10, 4], [10, 5], [11, 4], [11, 5], [31, 1]])
  assert length_buckets.first_that_holds(sizes, BUCKETS).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_shares", [1, 4])
def test_rows_come_once_in_bounded_time_and_batches_have_one_bucket(num_shares):
  rngs = [np.random.default_rng(i) for i in range(num_shares)]
  # The longest rows are too rare to fill a batch of their own in time.
  kinds = [(8, 3), (9, 8), (25, 4), (30, 9)]

  def sizes(rng):
    return lambda number: kinds[rng.choice(4, p=[0.5, 0.3, 0.19, 0.01])]

  seen = [set() for _ in rngs]
  natural = 0
  for rows, bucket, shares in batches([sizes(rng) for rng in rngs], 2, 200):
    for numbers, part, share in zip(seen, rows, shares, strict=True):
      assert len(part) == 2
      for r in part:
        number = int(r["audio"][0])
        assert number not in numbers and share.read - number <= PATIENCE + 4
        numbers.add(number)
    flat = [r for part in rows for r in part]
    own = length_buckets.first_that_holds(
      np.array([[len(r["audio"]), len(r["decoder_target_tokens"])] for r in flat]), BUCKETS
    )
    natural += (own == bucket).all()
    joined = length_buckets.join(flat, BUCKETS[bucket])
    assert joined["audio"].shape == (len(flat), BUCKETS[bucket]["audio"])
    for place, r in zip(joined["audio"], flat, strict=True):
      np.testing.assert_array_equal(place[: len(r["audio"])], r["audio"])
      assert not place[len(r["audio"]) :].any()
    assert all(
      share.read - len(n) == sum(share.counts()) for share, n in zip(shares, seen, strict=True)
    )
  assert natural > 150


def test_shares_of_different_lengths_still_fill_batches():
  """One share has short rows alone, the other long ones alone: only the last bucket serves both."""
  lengths = [lambda _: (5, 2), lambda _: (30, 9)]
  for _, bucket, shares in batches(lengths, 3, 50):
    assert bucket == 3
    assert all(sum(share.counts()) <= PATIENCE + 3 for share in shares)


def test_what_waits_is_written_and_read_back(tmp_path):
  waiting, restored, empty = (WaitingRows(BUCKETS) for _ in range(3))
  for number, sizes in enumerate([(3, 2), (30, 9), (10, 9), (4, 1)]):
    waiting.add(*row(number, *sizes))
  waiting.save(tmp_path)
  restored.restore(tmp_path)
  assert restored.read == 4 and restored.counts() == waiting.counts()
  assert restored.oldest() == waiting.oldest()
  for a, b in zip(waiting.take(3, 4, 99), restored.take(3, 4, 99), strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
      np.testing.assert_array_equal(a[name], b[name])
  empty.save(tmp_path)
  restored.restore(tmp_path)
  assert restored.read == 0 and not any(restored.counts())


def test_buckets_that_cannot_be_used_are_refused():
  length_buckets.check(BUCKETS, BUCKETS[-1])
  with pytest.raises(ValueError, match="never used"):
    length_buckets.check((BUCKETS[1], BUCKETS[0], BUCKETS[3]), BUCKETS[3])
  with pytest.raises(ValueError, match="exactly"):
    length_buckets.check(({"audio": 10}, BUCKETS[3]), BUCKETS[3])
  with pytest.raises(ValueError, match="last"):
    length_buckets.check(BUCKETS[:2], BUCKETS[3])
