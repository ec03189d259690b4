"""Augmentation: exact ratios, spectra and decay; deterministic; never clips."""

import numpy as np
import pytest

from slm_jax.data import augmentation
from slm_jax.data.augmentation import AugmentationConfig, augment

RATE = 16_000


def speech(seconds=1.0, rate=RATE, frequency=300.0):
  time = np.arange(int(seconds * rate)) / rate
  envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time)
  return (20_000 * envelope * np.sin(2 * np.pi * frequency * time)).astype(np.int16)


def plain(**changes):
  quiet = dict(
    noise_probability=0.0, room_probability=0.0, max_lead=0.0, min_peak=0.5, max_peak=0.5
  )
  return AugmentationConfig(**{**quiet, **changes})


def test_same_generator_gives_same_audio_and_another_gives_other():
  config = AugmentationConfig()
  first, again, other = (
    augment(speech(), RATE, np.random.default_rng(seed), config) for seed in (1, 1, 2)
  )
  assert first.dtype == np.int16
  assert np.array_equal(first, again)
  assert len(first) != len(other) or not np.array_equal(first, other)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_asked_ratio(snr_db):
  clean = speech().astype(np.float32)
  noise = augmentation.coloured_noise(np.random.default_rng(0), len(clean), 1.0)
  added = augmentation.add_noise(clean, noise, snr_db) - clean
  measured = 10 * np.log10(np.mean(clean**2) / np.mean(added**2))
  assert measured == pytest.approx(snr_db, abs=0.05)


@pytest.mark.parametrize("exponent", augmentation.NOISE_COLOURS.values())
def test_noise_spectrum_falls_as_its_colour_says(exponent):
  noise = augmentation.coloured_noise(np.random.default_rng(0), 1 << 16, exponent)
  power = np.abs(np.fft.rfft(noise)) ** 2
  octaves = [power[1 << k : 2 << k].mean() for k in range(5, 15)]
  slope = np.polyfit(np.arange(len(octaves)), np.log2(octaves), 1)[0]
  assert slope == pytest.approx(-exponent, abs=0.15)


def test_room_decays_by_60_db_in_its_reverberation_time():
  rt60 = 0.3
  responses = [
    augmentation.room_response(np.random.default_rng(seed), rt60, RATE) for seed in range(200)
  ]
  level = 10 * np.log10(np.mean(np.square(responses), axis=0) + 1e-12)
  start, stop = int(0.05 * RATE), int(0.25 * RATE)
  slope = np.polyfit(np.arange(start, stop) / RATE, level[start:stop], 1)[0]
  assert slope == pytest.approx(-60 / rt60, rel=0.05)
  assert all(response[0] == np.abs(response).max() == 1 for response in responses)


def test_convolution_equals_the_direct_sum():
  rng = np.random.default_rng(0)
  x, h = rng.standard_normal(100), rng.standard_normal(37)
  assert np.allclose(augmentation.convolve(x, h), np.convolve(x, h), atol=1e-4)


def test_peak_is_as_drawn_and_nothing_wraps():
  for seed in range(20):
    config = AugmentationConfig(min_peak=0.3, max_peak=0.3, min_snr_db=0, max_snr_db=0)
    out = augment(speech(), RATE, np.random.default_rng(seed), config)
    assert np.abs(out.astype(int)).max() == round(0.3 * 32_768)


def test_resampling_keeps_time_and_pitch():
  out = augment(speech(1.0, 22_050, 440.0), 22_050, np.random.default_rng(0), plain())
  assert len(out) == pytest.approx(RATE, rel=0.01)
  peak = np.argmax(np.abs(np.fft.rfft(out * np.hanning(len(out))))) * RATE / len(out)
  assert peak == pytest.approx(440, abs=4)


def test_silence_around_the_words_is_replaced_by_a_bounded_lead():
  padded = np.pad(speech(), 8_000)
  bare = augment(speech(), RATE, np.random.default_rng(0), plain())
  assert np.array_equal(augment(padded, RATE, np.random.default_rng(0), plain()), bare)
  lead = augment(padded, RATE, np.random.default_rng(0), plain(max_lead=0.1))
  assert len(bare) < len(lead) <= len(bare) + 2 * 0.1 * RATE


def test_silent_recording_is_an_error():
  with pytest.raises(ValueError, match="silent"):
    augment(np.zeros(1_000, np.int16), RATE, np.random.default_rng(0), AugmentationConfig())


@pytest.mark.parametrize(
  "change", [{"noise_probability": 1.5}, {"min_snr_db": 40.0}, {"max_peak": 1.2}, {"min_rt60": 0.0}]
)
def test_config_rejects_impossible_values(change):
  with pytest.raises(ValueError, match=r"\d"):
    AugmentationConfig(**change)
