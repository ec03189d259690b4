"""Granite-Speech's frontend against torch's transform, which its published extractor is made of.

The extractor itself needs torchaudio, a package that follows torch's releases late.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.audio.granite_speech_log_mel import GraniteSpeechLogMelConfig, granite_speech_log_mel
from tests.torch_conformers import granite_features

RNG = np.random.default_rng(0)


def wave(num_samples: int) -> np.ndarray:
  return (RNG.normal(size=num_samples) * 3000).astype(np.int16)


def ours(one: np.ndarray, bins: int = 80, size: int | None = None):
  """Features of one waveform, followed by loud noise up to `size` samples."""
  lengths = jnp.array([len(one)])
  one = np.concatenate([one, wave(size - len(one))]) if size else one
  config = GraniteSpeechLogMelConfig(num_mel_bins=bins)
  features, mask = granite_speech_log_mel(jnp.asarray(one)[None], lengths, config)
  return np.asarray(features[0]), np.asarray(mask[0])


@pytest.mark.parametrize("bins", [40, 80])
@pytest.mark.parametrize("num_samples", [257, 319, 320, 479, 480, 481, 3999, 4001])
def test_features_are_theirs(num_samples, bins):
  one = wave(num_samples)
  expected = granite_features(one, bins)
  count = (num_samples // 160 + 1) // 2
  assert expected.shape == (count, 2 * bins)
  for size in (None, 5000):
    features, mask = ours(one, bins, size)
    assert mask.sum() == count and not features[count:].any()
    np.testing.assert_allclose(features[:count], expected, atol=1e-4)


def test_quiet_bins_are_raised_and_a_dropped_frame_counts():
  # An odd last frame, much the loudest, sets the floor of all others.
  one = np.zeros(4 * 160, np.int16)
  one[-100:] = wave(100)
  expected = granite_features(one, 80)
  assert len(expected) == 2
  features, mask = ours(one, size=900)
  np.testing.assert_allclose(features[mask], expected, atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 199, 256])
def test_audio_too_short_to_be_reflected_has_no_frame(num_samples):
  for size in (None, 900):
    features, mask = ours(wave(num_samples), size=size)
    assert not mask.any() and not features.any()


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match="num_mel_bins=0"):
    GraniteSpeechLogMelConfig(num_mel_bins=0)
