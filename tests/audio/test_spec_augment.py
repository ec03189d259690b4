"""SpecAugment: where masks may fall, how large they are, and that the key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.audio.spec_augment import SpecAugmentConfig, spec_augment

CONFIG = SpecAugmentConfig(num_freq_masks=2, max_freq_bins=6, num_time_masks=3, max_time_share=0.1)
LENGTHS = np.array([50, 20, 3, 0])
MASK = jnp.asarray(np.arange(50) < LENGTHS[:, None])
FEATURES = jnp.where(MASK[..., None], 1.0, 9.0) * jnp.ones((4, 50, 40))


def hidden(seed: int, config: SpecAugmentConfig = CONFIG) -> np.ndarray:
  return np.asarray(spec_augment(jax.random.key(seed), FEATURES, MASK, config)) == 0


def test_the_key_decides():
  np.testing.assert_array_equal(hidden(0), hidden(0))
  assert (hidden(0) != hidden(1)).any()
  assert (hidden(0)[0] != hidden(0)[1])[:20].any()  # examples draw their own masks


def test_padding_is_left_alone():
  for seed in range(5):
    out = np.asarray(spec_augment(jax.random.key(seed), FEATURES, MASK, CONFIG))
    assert (out[~np.asarray(MASK)] == 9.0).all()
    assert set(np.unique(out[np.asarray(MASK)])) <= {0.0, 1.0}


def test_masks_stay_within_their_sizes():
  time_only = SpecAugmentConfig(num_freq_masks=0, num_time_masks=1, max_time_share=0.1)
  freq_only = SpecAugmentConfig(num_freq_masks=1, max_freq_bins=6, num_time_masks=0)
  widths = []
  for seed in range(40):
    frames = hidden(seed, time_only)
    assert (frames.all(axis=-1) == frames.any(axis=-1)).all()  # whole frames
    widths.append(frames.any(axis=-1).sum(axis=1))
    bins = hidden(seed, freq_only)[0]
    assert (bins.all(axis=0) == bins.any(axis=0)).all() and bins.any(axis=0).sum() <= 6
  assert np.max(widths, axis=0).tolist() == [5, 2, 0, 0]  # a tenth of each example's own length


def test_masks_reach_both_ends():
  config = SpecAugmentConfig(
    num_freq_masks=1, max_freq_bins=6, num_time_masks=1, max_time_share=0.2
  )
  union = np.any([hidden(seed, config)[:2] for seed in range(150)], axis=0)
  assert union[0].all() and union[1, :20].all()


def test_no_masks_is_identity():
  config = SpecAugmentConfig(num_freq_masks=0, num_time_masks=0)
  np.testing.assert_array_equal(spec_augment(jax.random.key(0), FEATURES, MASK, config), FEATURES)


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="max_time_share=1.5"):
    SpecAugmentConfig(max_time_share=1.5)
  with pytest.raises(ValueError, match="num_time_masks=-1"):
    SpecAugmentConfig(num_time_masks=-1)
