"""LASR's frontend against transformers'."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LasrFeatureExtractor

from slm_jax.audio.lasr_log_mel import LasrLogMelConfig, lasr_log_mel
from tests.torch_conformers import extracted

RNG = np.random.default_rng(0)


def wave(num_samples: int) -> np.ndarray:
  return (RNG.normal(size=num_samples) * 3000).astype(np.int16)


def ours(one: np.ndarray, config: LasrLogMelConfig, size: int | None = None):
  """Features of one waveform, followed by loud noise up to `size` samples."""
  lengths = jnp.array([len(one)])
  one = np.concatenate([one, wave(size - len(one))]) if size else one
  features, mask = lasr_log_mel(jnp.asarray(one)[None], lengths, config)
  return np.asarray(features[0]), np.asarray(mask[0])


@pytest.mark.parametrize("num_samples", [400, 401, 559, 560, 561, 4001])
def test_features_are_theirs(num_samples):
  one = wave(num_samples)
  found = extracted(LasrFeatureExtractor(), [one])
  count = int(found["attention_mask"].sum())
  assert count == (num_samples - 400) // 160 + 1
  for size in (None, 5000):
    features, mask = ours(one, LasrLogMelConfig(), size)
    assert mask.sum() == count and not features[count:].any()
    np.testing.assert_allclose(features[:count], found["input_features"][0, :count], atol=1e-4)


@pytest.mark.parametrize(
  ("theirs", "changes"),
  [
    (dict(feature_size=80), dict(num_mel_bins=80)),
    (dict(hop_length=200), dict(hop=200)),
    (dict(n_fft=1024), dict(fft_size=1024)),
    (dict(win_length=321), dict(window=321)),
  ],
)
def test_settings_are_theirs(theirs: dict[str, Any], changes: dict[str, Any]):
  one = wave(4000)
  found = extracted(LasrFeatureExtractor(**theirs), [one])
  count = int(found["attention_mask"].sum())
  features, mask = ours(one, LasrLogMelConfig(**changes))
  assert mask.sum() == count
  np.testing.assert_allclose(features[:count], found["input_features"][0, :count], atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_audio_shorter_than_a_window_has_no_frame(num_samples):
  for size in (None, 900):
    features, mask = ours(wave(num_samples), LasrLogMelConfig(), size)
    assert not mask.any() and not features.any()


def test_silence_is_the_floor():
  features, _ = ours(np.zeros(1000, np.int16), LasrLogMelConfig())
  np.testing.assert_allclose(features, np.log(1e-5), rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(window=600), "window=600"),
    (dict(hop=0), "hop=0"),
    (dict(num_mel_bins=0), "num_mel_bins=0"),
    (dict(fft_size=511), "fft_size=511"),
    (dict(sample_rate=8000), "sample_rate=8000"),
  ],
)
def test_impossible_settings_are_refused(changes, says):
  with pytest.raises(ValueError, match=says):
    LasrLogMelConfig(**changes)
