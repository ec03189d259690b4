"""Length reduction: static shapes, masks, and each kind against plain Python."""

import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.ctc import greedy_decode
from slm_jax.models.length_reduction import (
  CTC_KINDS,
  FIXED_KINDS,
  LengthReduction,
  LengthReductionConfig,
)

RNG = np.random.default_rng(0)
LENGTHS = [11, 8, 5, 1, 0]
MASK = np.arange(11) < np.array(LENGTHS)[:, None]
FRAMES = RNG.normal(size=(5, 11, 3)).astype(np.float32)
BEST = RNG.choice(3, size=(5, 11), p=[0.5, 0.25, 0.25])
BEST[2] = 0  # only blanks
LOGITS = (np.eye(3)[BEST] * 4 + RNG.normal(size=(5, 11, 3)) * 0.1).astype(np.float32)


def reduce(config, frames=FRAMES, mask=MASK, logits=LOGITS, train=False, seed=0):
  module = LengthReduction(config)

  @jax.jit
  def apply(frames, mask, logits, seed):
    params = nn.unbox(module.init(jax.random.key(0), frames, mask, logits)).get("params", {})
    rngs = {"length_reduction": jax.random.key(seed)}
    return module.apply(
      {"params": params}, frames, mask, logits, train=train, rngs=rngs, mutable="intermediates"
    )

  (out, out_mask), sown = apply(frames, mask, logits, seed)
  return np.asarray(out), np.asarray(out_mask), sown


def groups(row: int, factor: int) -> list[np.ndarray]:
  real = FRAMES[row, : LENGTHS[row]]
  return [real[t : t + factor] for t in range(0, len(real), factor)]


@pytest.mark.parametrize("kind", FIXED_KINDS + CTC_KINDS)
@pytest.mark.parametrize("size", [11, 8, 1])
def test_declared_shapes_and_masks(kind, size):
  config = LengthReductionConfig(kind=kind, factor=3, max_frames=0.7)
  frames, mask = FRAMES[:, :size], MASK[:, :size]
  out, out_mask, _ = reduce(config, frames, mask, LOGITS[:, :size])
  assert out.shape == (5, config.output_length(size), config.output_dim(3))
  assert out_mask.shape == out.shape[:2]
  assert (out_mask == np.sort(out_mask, axis=1)[:, ::-1]).all()  # real frames first
  assert not out[~out_mask].any()
  assert (out_mask.any(axis=1) == mask.any(axis=1)).all()  # no speech lost, none invented
  if kind in FIXED_KINDS:
    assert out_mask.sum(axis=1).tolist() == [-(-n // 3) for n in mask.sum(axis=1)]


@pytest.mark.parametrize("kind", FIXED_KINDS + CTC_KINDS)
def test_padding_content_changes_nothing(kind):
  config = LengthReductionConfig(kind=kind, factor=3)
  loud_frames = np.where(MASK[..., None], FRAMES, 1e3)
  loud_logits = np.where(MASK[..., None], LOGITS, RNG.normal(size=LOGITS.shape) * 9)
  for train in (False, True):
    first, first_mask, _ = reduce(config, train=train)
    second, second_mask, _ = reduce(config, loud_frames, MASK, loud_logits, train=train)
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_array_equal(first_mask, second_mask)


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("drop", lambda group: group[0]),
    ("mean", lambda group: group.mean(axis=0)),
    ("stack", lambda group: np.pad(group, ((0, 3 - len(group)), (0, 0))).reshape(-1)),
  ],
)
def test_fixed_kinds_match_python(kind, expected):
  out, _, _ = reduce(LengthReductionConfig(kind=kind, factor=3))
  for row in range(5):
    for position, group in enumerate(groups(row, 3)):
      np.testing.assert_allclose(out[row, position], expected(group), atol=1e-6)


def test_random_drop_draws_real_frames_in_training_only():
  config = LengthReductionConfig(kind="random_drop", factor=3)
  plain, _, _ = reduce(LengthReductionConfig(kind="drop", factor=3))
  np.testing.assert_array_equal(reduce(config)[0], plain)
  np.testing.assert_array_equal(reduce(config, train=True)[0], reduce(config, train=True)[0])
  chosen = set()
  for seed in range(20):
    out, _, _ = reduce(config, train=True, seed=seed)
    for row in range(5):
      for position, group in enumerate(groups(row, 3)):
        hits = np.flatnonzero((group == out[row, position]).all(axis=-1))
        assert len(hits) == 1
        chosen.add((row, position, int(hits[0])))
  assert {c for c in chosen if c[:2] == (0, 0)} == {(0, 0, 0), (0, 0, 1), (0, 0, 2)}
  assert {c for c in chosen if c[:2] == (0, 3)} == {(0, 3, 0), (0, 3, 1)}  # the partial last group


def test_conv_matches_python():
  config = LengthReductionConfig(kind="conv", factor=3)
  module = LengthReduction(config)
  params = nn.unbox(module.init(jax.random.key(0), FRAMES, MASK))
  kernel = np.asarray(params["params"]["conv"]["kernel"]).reshape(5, 3, 3)
  out, mask = module.apply(params, FRAMES, MASK)
  for row in range(5):
    for position in range(int(mask[row].sum())):
      expected = np.zeros(3)
      for tap in range(5):
        frame = 3 * position + tap - 2
        if 0 <= frame < LENGTHS[row]:
          expected += FRAMES[row, frame] @ kernel[tap]
      np.testing.assert_allclose(out[row, position], expected, atol=1e-5)


@pytest.mark.parametrize("max_frames", [1.0, 0.3])
def test_ctc_blank_matches_python(max_frames):
  config = LengthReductionConfig(kind="ctc_blank", max_frames=max_frames)
  out, mask, sown = reduce(config)
  size = config.output_length(11)
  blank = np.asarray(jax.nn.log_softmax(LOGITS, axis=-1))[..., 0]
  for row, length in enumerate(LENGTHS):
    kept = [t for t in range(length) if BEST[row, t]]
    if not kept and length:
      kept = [int(np.argmin(blank[row, :length]))]
    assert int(sown["intermediates"]["frames_lost"][0][row]) == max(len(kept) - size, 0)
    kept = kept[:size]
    assert mask[row].sum() == len(kept)
    np.testing.assert_array_equal(out[row, : len(kept)], FRAMES[row, kept])


@pytest.mark.parametrize("max_frames", [1.0, 0.3])
def test_ctc_collapse_matches_python(max_frames):
  config = LengthReductionConfig(kind="ctc_collapse", max_frames=max_frames)
  out, mask, sown = reduce(config)
  size = config.output_length(11)
  for row, length in enumerate(LENGTHS):
    runs = [list(run) for _, run in itertools.groupby(range(length), lambda t: BEST[row, t])]  # noqa: B023
    assert int(sown["intermediates"]["frames_lost"][0][row]) == max(len(runs) - size, 0)
    runs = runs[:size]
    assert mask[row].sum() == len(runs)
    for position, run in enumerate(runs):
      np.testing.assert_allclose(out[row, position], FRAMES[row, run].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("max_frames", [1.0, 0.3])
def test_ctc_tokens_matches_python(max_frames):
  config = LengthReductionConfig(kind="ctc_tokens", max_frames=max_frames)
  out, mask, sown = reduce(config)
  size = config.output_length(11)
  blank = np.asarray(jax.nn.log_softmax(LOGITS, axis=-1))[..., 0]
  for row, length in enumerate(LENGTHS):
    runs = [list(run) for _, run in itertools.groupby(range(length), lambda t: BEST[row, t])]  # noqa: B023
    runs = [run for run in runs if BEST[row, run[0]]]
    if not runs and length:
      runs = [[int(np.argmin(blank[row, :length]))]]
    assert int(sown["intermediates"]["frames_lost"][0][row]) == max(len(runs) - size, 0)
    runs = runs[:size]
    assert mask[row].sum() == len(runs)
    for position, run in enumerate(runs):
      np.testing.assert_allclose(out[row, position], FRAMES[row, run].mean(axis=0), atol=1e-6)


def test_ctc_tokens_has_as_many_frames_as_the_greedy_text_has_tokens():
  _, mask, _ = reduce(LengthReductionConfig(kind="ctc_tokens", max_frames=1.0))
  _, counts = greedy_decode(LOGITS, MASK)
  spoken = np.asarray(counts) > 0
  np.testing.assert_array_equal(np.asarray(mask).sum(axis=1)[spoken], np.asarray(counts)[spoken])


def test_kinds_that_need_logits_say_so():
  module = LengthReduction(LengthReductionConfig(kind="ctc_blank"))
  with pytest.raises(ValueError, match="CTC head"):
    module.init(jax.random.key(0), FRAMES, MASK)


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="kind='pool'"):
    LengthReductionConfig(kind="pool")
  with pytest.raises(ValueError, match="factor=0"):
    LengthReductionConfig(factor=0)
  with pytest.raises(ValueError, match="max_frames=0"):
    LengthReductionConfig(max_frames=0)


def test_random_drop_is_fair_to_the_frames_of_a_partial_group():
  position = np.tile(np.arange(2, dtype=np.float32)[None, :, None], (600, 1, 1))
  config = LengthReductionConfig(kind="random_drop", factor=3)
  real = np.ones((600, 2), bool)
  out, _, _ = reduce(config, position, real, np.zeros((600, 2, 3), np.float32), train=True)
  assert 0.4 < out.mean() < 0.6
