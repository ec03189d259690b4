"""Log-mel features: librosa's numbers, the framing rule, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from slm_jax.audio.log_mel import LogMelConfig, log_mel, mel_filters

CONFIG = LogMelConfig()
log_mel = jax.jit(log_mel, static_argnames=("num_mel_bins", "config"))


def tone(num_samples: int) -> np.ndarray:
  """A chirp in noise, fp32 [S], with a silent stretch that reaches the floor."""
  time = np.arange(num_samples) / 16_000
  noise = np.random.default_rng(0).normal(size=num_samples)
  audio = 0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.01 * noise
  audio[num_samples // 2 : num_samples // 2 + 1000] = 0
  return audio.astype(np.float32)


@pytest.mark.parametrize("num_samples", [16_000, 6_479])
def test_matches_librosa(num_samples):
  audio = tone(num_samples)
  features, mask = log_mel(audio[None], jnp.array([num_samples]), num_mel_bins=128, config=CONFIG)
  # librosa puts the 400-sample window amid 512 samples: 56 on each side, besides our own 120.
  padded = np.pad(audio, (56 + 120, 1024))
  expected = librosa.feature.melspectrogram(
    y=padded, sr=16_000, n_fft=512, hop_length=160, win_length=400, window="hann", center=False,
    power=2.0, n_mels=128, fmin=125.0, fmax=7600.0,
  )  # fmt: skip
  expected = (np.log(np.maximum(expected.T, 1e-7)) + 7) / 4
  num_frames = -(-num_samples // 160)
  assert features.shape == (1, num_frames, 128) and mask.all()
  np.testing.assert_allclose(features[0], expected[:num_frames], atol=1e-4)
  assert np.isclose(features.min(), (np.log(1e-7) + 7) / 4)


def test_each_sample_owns_a_frame_and_padding_is_masked():
  audio = np.ones((4, 1000), np.float32)
  lengths = jnp.array([0, 1, 160, 161])
  features, mask = log_mel(audio, lengths, num_mel_bins=16, config=CONFIG)
  assert mask.sum(axis=1).tolist() == [0, 1, 1, 2]
  assert mask.shape[1] == CONFIG.num_frames(1000) == 7
  assert not np.asarray(features)[~np.asarray(mask)].any()


def test_padding_content_changes_nothing():
  rng = np.random.default_rng(1)
  audio = rng.normal(size=(3, 4000)).astype(np.float32)
  lengths = jnp.array([4000, 2345, 100])
  loud = np.where(np.arange(4000) < np.array(lengths)[:, None], audio, np.nan)
  longer = np.pad(audio, ((0, 0), (0, 999)), constant_values=7.0)
  first, mask = log_mel(audio, lengths, num_mel_bins=32, config=CONFIG)
  second, _ = log_mel(loud, lengths, num_mel_bins=32, config=CONFIG)
  third, _ = log_mel(longer, lengths, num_mel_bins=32, config=CONFIG)
  np.testing.assert_array_equal(first, second)
  np.testing.assert_allclose(first, third[:, : first.shape[1]], atol=1e-5)
  assert mask.sum(axis=1).tolist() == [25, 15, 1]


def test_int16_is_read_as_fractions_of_full_scale():
  audio = (tone(3200) * 32768).astype(np.int16)[None]
  lengths = jnp.array([3200])
  first, _ = log_mel(audio, lengths, num_mel_bins=32, config=CONFIG)
  second, _ = log_mel(audio / np.float32(32768), lengths, num_mel_bins=32, config=CONFIG)
  np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
  "change",
  [dict(window=320), dict(hop=80), dict(fft_size=1024), dict(min_hz=0.0), dict(max_hz=8000.0),
   dict(floor=1e-3), dict(mean=0.0), dict(std=1.0), dict(sample_rate=32_000)],
  ids=str,
)  # fmt: skip
def test_each_field_changes_the_features(change):
  audio, lengths = tone(3200)[None], jnp.array([3200])
  config = dataclasses.replace(CONFIG, **change)
  first, _ = log_mel(audio, lengths, num_mel_bins=32, config=CONFIG)
  second, _ = log_mel(audio, lengths, num_mel_bins=32, config=config)
  assert first.shape != second.shape or np.abs(first - second).max() > 1e-3


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="hop=500"):
    LogMelConfig(hop=500)
  with pytest.raises(ValueError, match="max_hz=9000"):
    LogMelConfig(max_hz=9000.0)
  with pytest.raises(ValueError, match="floor=0"):
    LogMelConfig(floor=0.0)
  with pytest.raises(ValueError, match="cover no FFT bin"), pytest.warns(UserWarning):
    mel_filters(CONFIG, 512)
