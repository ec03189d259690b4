"""Parakeet's frontend against transformers'."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import ParakeetFeatureExtractor

from slm_jax.audio.parakeet_log_mel import ParakeetLogMelConfig, parakeet_log_mel
from tests.torch_conformers import extracted

RNG = np.random.default_rng(0)


def wave(num_samples: int) -> np.ndarray:
  return (RNG.normal(size=num_samples) * 3000).astype(np.int16)


def ours(one: np.ndarray, config: ParakeetLogMelConfig, size: int | None = None):
  """Features of one waveform, followed by loud noise up to `size` samples."""
  lengths = jnp.array([len(one)])
  one = np.concatenate([one, wave(size - len(one))]) if size else one
  features, mask = parakeet_log_mel(jnp.asarray(one)[None], lengths, config)
  return np.asarray(features[0]), np.asarray(mask[0])


@pytest.mark.parametrize("num_samples", [320, 479, 480, 481, 3999, 4001])
def test_features_are_theirs(num_samples):
  one = wave(num_samples)
  found = extracted(ParakeetFeatureExtractor(), [one])
  count = int(found["attention_mask"].sum())
  assert count == num_samples // 160
  for size in (None, 5000):
    features, mask = ours(one, ParakeetLogMelConfig(), size)
    assert mask.sum() == count and not features[count:].any()
    np.testing.assert_allclose(features[:count], found["input_features"][0, :count], atol=1e-4)


@pytest.mark.parametrize(
  ("theirs", "changes"),
  [
    (dict(feature_size=128), dict(num_mel_bins=128)),
    (dict(hop_length=200), dict(hop=200)),
    (dict(n_fft=1024), dict(fft_size=1024)),
    (dict(win_length=321), dict(window=321)),
    (dict(preemphasis=0.5), dict(pre_emphasis=0.5)),
    (dict(preemphasis=None), dict(pre_emphasis=0.0)),
  ],
)
def test_settings_are_theirs(theirs: dict[str, Any], changes: dict[str, Any]):
  one = wave(4000)
  found = extracted(ParakeetFeatureExtractor(**theirs), [one])
  count = int(found["attention_mask"].sum())
  features, mask = ours(one, ParakeetLogMelConfig(**changes))
  assert mask.sum() == count
  np.testing.assert_allclose(features[:count], found["input_features"][0, :count], atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 319])
def test_audio_too_short_to_have_a_deviation_gives_zeros(num_samples):
  features, mask = ours(wave(num_samples), ParakeetLogMelConfig(), 900)
  assert mask.sum() == num_samples // 160
  assert not features.any()


def test_silence_is_zero():
  # But for the ends, where a constant meets the zeros around it, nothing moves.
  features, _ = ours(np.zeros(4000, np.int16), ParakeetLogMelConfig())
  assert not features.any()


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(window=600), "window=600"),
    (dict(hop=0), "hop=0"),
    (dict(num_mel_bins=0), "num_mel_bins=0"),
    (dict(fft_size=511), "fft_size=511"),
  ],
)
def test_impossible_settings_are_refused(changes, says):
  with pytest.raises(ValueError, match=says):
    ParakeetLogMelConfig(**changes)
