"""The frontends of Gemma's audio towers against transformers'."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import Gemma3nAudioFeatureExtractor, Gemma4AudioFeatureExtractor

from slm_jax.audio.gemma_log_mel import GEMMA4_LOG_MEL, GemmaLogMelConfig, gemma_log_mel
from tests.torch_conformers import extracted

RNG = np.random.default_rng(0)
GEMMA3N = (Gemma3nAudioFeatureExtractor, GemmaLogMelConfig())
GEMMA4 = (Gemma4AudioFeatureExtractor, GEMMA4_LOG_MEL)
log_mel = jax.jit(gemma_log_mel, static_argnums=2)


def wave(num_samples: int) -> np.ndarray:
  return (RNG.normal(size=num_samples) * 3000).astype(np.int16)


def check(extractor, config: GemmaLogMelConfig, num_samples: int, size: int) -> int:
  """Features of one waveform, behind it loud noise up to `size` samples; returns how many."""
  one = wave(num_samples)
  found = extracted(extractor, [one])
  count = int(found["input_features_mask"].sum())
  audio = jnp.asarray(np.concatenate([one, wave(size - num_samples)]))
  features, mask = (
    np.asarray(x[0]) for x in log_mel(audio[None], jnp.array([num_samples]), config)
  )
  assert len(mask) == config.num_frames(size)
  assert mask.sum() == mask[:count].sum() == count == config.num_frames(num_samples)
  np.testing.assert_allclose(features[:count], found["input_features"][0, :count], atol=1e-4)
  assert not features[count:].any()
  return count


@pytest.mark.parametrize(
  ("family", "num_samples", "count"),
  [
    (GEMMA3N, 513, 1),
    (GEMMA3N, 768, 2),
    (GEMMA3N, 769, 3),
    (GEMMA3N, 16_001, 98),
    (GEMMA4, 161, 1),
    (GEMMA4, 320, 1),
    (GEMMA4, 321, 2),
    (GEMMA4, 16_000, 99),
    (GEMMA4, 16_001, 100),
  ],
)
def test_features_are_theirs(family, num_samples, count):
  make, config = family
  for size in (num_samples, num_samples + 777):
    assert check(make(), config, num_samples, size) == count


@pytest.mark.parametrize(
  ("family", "settings", "changes"),
  [
    (GEMMA3N, dict(preemphasis_htk_flavor=False), dict(preemphasis_in_frame=False)),
    (GEMMA3N, dict(preemphasis=0.0), dict(preemphasis=0.0)),
    (GEMMA3N, dict(fft_overdrive=False, mel_floor=0.5), dict(fft_size=512, floor=0.5)),
    (
      GEMMA3N,
      dict(frame_length_ms=25.0, hop_length_ms=12.5, feature_size=80),
      dict(window=400, hop=200, num_mel_bins=80),
    ),
    (GEMMA4, dict(preemphasis=0.9), dict(preemphasis=0.9)),
    (
      GEMMA4,
      dict(frame_length_ms=30.0, min_frequency=60.0, max_frequency=7000.0),
      dict(window=480, lead=240, min_hz=60.0, max_hz=7000.0),
    ),
  ],
)
def test_settings_are_theirs(family, settings: dict[str, Any], changes):
  make, published = family
  assert check(make(**settings), dataclasses.replace(published, **changes), 5_001, 5_500) > 20


def test_int16_is_float():
  one, lengths = wave(4_000)[None], jnp.array([3_999])
  for _, config in (GEMMA3N, GEMMA4):
    first, _ = log_mel(jnp.asarray(one), lengths, config)
    second, _ = log_mel(jnp.asarray(one / np.float32(32768)), lengths, config)
    np.testing.assert_array_equal(first, second)


def test_silence_and_nothing():
  for _, config in (GEMMA3N, GEMMA4):
    silence, mask = log_mel(jnp.zeros((2, 2_000)), jnp.array([2_000, 0]), config)
    np.testing.assert_allclose(silence[0], np.log(config.floor), rtol=1e-5)
    assert mask[0].all() and not mask[1].any()
    for size in (0, 100):
      features, mask = log_mel(jnp.zeros((2, size)), jnp.array([size, 0]), config)
      assert features.shape == (2, 0, 128) and mask.shape == (2, 0)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(num_mel_bins=0), "num_mel_bins=0"),
    (dict(fft_size=500), "window=512"),
    (dict(fft_size=513), "fft_size=513"),
    (dict(lead=513), "lead=513"),
    (dict(max_hz=9000.0), "max_hz=9000.0"),
    (dict(floor=0.0), "floor=0.0"),
    (dict(preemphasis=2.0), "preemphasis=2.0"),
  ],
)
def test_impossible_settings(changes, says):
  with pytest.raises(ValueError, match=says):
    GemmaLogMelConfig(**changes)
