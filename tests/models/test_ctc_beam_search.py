"""Prefix beam search against sums over all alignments, greedy decoding and the CTC loss."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.models.ctc import ctc_loss, greedy_decode
from slm_jax.models.ctc_beam_search import ctc_beam_search


def all_texts(logits: np.ndarray, blank_id: int) -> dict[tuple[int, ...], float]:
  """Probability of every text of logits [T, V], summed over all V ** T alignments."""
  probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  table: dict[tuple[int, ...], float] = {}
  for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
    text = tuple(key for key, _ in itertools.groupby(path) if key != blank_id)
    table[text] = table.get(text, 0.0) + float(np.prod(probs[np.arange(len(path)), path]))
  return table


def texts(beams, row: int) -> list[tuple[int, ...]]:
  return [
    tuple(ids[:n].tolist())
    for ids, n in zip(np.asarray(beams.ids[row]), np.asarray(beams.lengths[row]), strict=True)
  ]


@pytest.mark.parametrize("blank_id", [0, 2])
def test_nothing_pruned_is_the_sum_over_all_alignments(blank_id):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 5, 3)).astype(np.float32)
  lengths = np.array([5, 3, 0])
  mask = np.arange(5) < lengths[:, None]
  beams = ctc_beam_search(logits, mask, num_beams=64, top_classes=9, blank_id=blank_id)
  for row, length in enumerate(lengths):
    expected = all_texts(logits[row, :length].astype(np.float64), blank_id)
    log_probs, count = np.asarray(beams.log_probs[row]), len(expected)
    found = dict(zip(texts(beams, row)[:count], log_probs[:count], strict=True))
    assert found.keys() == expected.keys()
    for text, p in expected.items():
      assert found[text] == pytest.approx(np.log(p), abs=1e-4)
    assert (np.diff(log_probs[:count]) <= 0).all() and np.isneginf(log_probs[count:]).all()
  assert not np.asarray(beams.ids)[np.arange(5) >= np.asarray(beams.lengths)[..., None]].any()


def test_a_narrow_beam_finds_texts_once_and_never_says_too_much():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 30, 8)).astype(np.float32) * 2
  mask = np.arange(30) < np.array([30, 17, 29, 5])[:, None]
  beams = ctc_beam_search(logits, mask, num_beams=6, top_classes=5)
  for row in range(4):
    assert len(set(texts(beams, row))) == 6
  for place in range(6):
    labels, lengths = beams.ids[:, place], beams.lengths[:, place]
    label_mask = jnp.arange(30)[None] < lengths[:, None]
    exact = -np.asarray(ctc_loss(jnp.asarray(logits), jnp.asarray(mask), labels, label_mask))
    assert (beams.log_probs[:, place] <= exact + 1e-3).all()


def dictionary_search(logits, num_beams, top_classes):
  """The textbook's search over logits [T, V], with a dictionary: text -> (ends in blank, does not)."""
  probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
  probs /= probs.sum(axis=-1, keepdims=True)
  beam = {(): (1.0, 0.0)}
  for frame in probs:
    new: dict[tuple[int, ...], list[float]] = {}
    tried = sorted(range(1, len(frame)), key=lambda c: -frame[c])[:top_classes]
    for text, (blank, label) in beam.items():
      ends = new.setdefault(text, [0.0, 0.0])
      ends[0] += (blank + label) * frame[0]
      if text:
        ends[1] += label * frame[text[-1]]
      for c in tried:
        before = blank if text and c == text[-1] else blank + label
        new.setdefault((*text, c), [0.0, 0.0])[1] += before * frame[c]
    best = sorted(new.items(), key=lambda item: -sum(item[1]))[:num_beams]
    beam = {text: (ends[0], ends[1]) for text, ends in best}
  return [(text, np.log(sum(ends))) for text, ends in beam.items()]


@pytest.mark.parametrize(("num_beams", "top_classes"), [(5, 4), (12, 3)])
def test_a_narrow_beam_is_the_textbooks(num_beams, top_classes):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 40, 7)) * 2
  mask = np.ones((6, 40), bool)
  beams = ctc_beam_search(
    logits.astype(np.float32), mask, num_beams=num_beams, top_classes=top_classes
  )
  for row in range(6):
    expected = dictionary_search(logits[row], num_beams, top_classes)
    assert texts(beams, row) == [text for text, _ in expected]
    np.testing.assert_allclose(beams.log_probs[row], [p for _, p in expected], atol=1e-3)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_where_one_class_dominates_it_is_greedy_decoding(num_beams):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(5, 40, 7)).astype(np.float32)
  best = rng.integers(0, 7, (5, 40))
  best[:, 1::3] = best[:, :-1:3]  # repetitions
  logits[np.arange(5)[:, None], np.arange(40), best] += 20
  mask = np.arange(40) < np.array([40, 39, 20, 1, 0])[:, None]
  ids, lengths = greedy_decode(jnp.asarray(logits), jnp.asarray(mask))
  beams = ctc_beam_search(logits, mask, num_beams=num_beams, top_classes=3)
  np.testing.assert_array_equal(beams.ids[:, 0], ids)
  np.testing.assert_array_equal(beams.lengths[:, 0], lengths)


def test_the_sum_may_beat_the_best_alignment():
  # Two alignments of "1" together are likelier than the one of "".
  probs = np.array([[0.6, 0.4], [0.6, 0.4]])
  logits = np.log(probs)[None].astype(np.float32)
  mask = np.ones((1, 2), bool)
  assert greedy_decode(jnp.asarray(logits), jnp.asarray(mask))[1].tolist() == [0]
  beams = ctc_beam_search(logits, mask, num_beams=2)
  assert texts(beams, 0) == [(1,), ()]
  np.testing.assert_allclose(np.exp(beams.log_probs[0]), [0.64, 0.36], atol=1e-6)


def test_what_padding_holds_and_impossible_classes_change_nothing():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 12, 5)).astype(np.float32)
  logits[..., 3] = -np.inf
  mask = np.arange(12) < np.array([12, 7])[:, None]
  first = ctc_beam_search(logits, mask, num_beams=4)
  noisy = np.where(mask[..., None], logits, rng.normal(size=logits.shape) * 100)
  second = ctc_beam_search(noisy.astype(np.float32), mask, num_beams=4)
  alone = ctc_beam_search(logits[1:, :7], mask[1:, :7], num_beams=4)
  np.testing.assert_array_equal(first.ids, second.ids)
  np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)
  np.testing.assert_array_equal(first.ids[1:, :, :7], alone.ids)
  assert not (np.asarray(first.ids) == 3).any() and np.isfinite(first.log_probs).all()


@pytest.mark.parametrize("bad", [dict(num_beams=0), dict(top_classes=0)], ids=str)
def test_numbers_that_make_no_beam(bad):
  with pytest.raises(ValueError, match=f"{next(iter(bad))}=0"):
    ctc_beam_search(np.zeros((1, 2, 3)), np.ones((1, 2), bool), **bad)
