"""Kaldi's filterbank against transformers' extractor of w2v-BERT 2.0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr
import transformers

from slm_jax.audio.kaldi_fbank import KaldiFbankConfig, kaldi_fbank, normalise_bins, stack_pairs

CONFIG = KaldiFbankConfig()


@jax.jit
def extract(audio, lengths):
  features, mask = kaldi_fbank(audio, lengths, CONFIG)
  return features, mask, *stack_pairs(normalise_bins(features, mask), mask)


@pytest.fixture(scope="module")
def extractor():
  return transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)


def noise(*shape: int, loudness: float = 500) -> np.ndarray:
  """int16 of the shape, the same at every call."""
  return (np.random.default_rng(0).normal(size=shape) * loudness).astype(np.int16)


def as_float(wave: np.ndarray) -> np.ndarray:
  return wave / np.float32(32768)


# Pairs of frames begin at 400 + 160 samples, and every 320; one sample more and less of each.
@pytest.mark.parametrize("size", [560, 719, 720, 721, 879, 880, 9_999, 10_160, 16_001])
@pytest.mark.parametrize("loudness", [3, 3000])
def test_features_are_theirs(extractor, size, loudness):
  wave = noise(size, loudness=loudness)
  features, mask, pairs, pair_mask = extract(wave[None], jnp.array([size]))
  assert mask.all() and CONFIG.num_frames(size) == mask.shape[1]
  raw = extractor._extract_fbank_features(as_float(wave))
  np.testing.assert_allclose(features[0], raw, atol=1e-5)
  theirs = extractor(as_float(wave), sampling_rate=16_000, return_tensors="np")
  expected = np.asarray(theirs["input_features"][0])
  real = np.asarray(theirs["attention_mask"][0]).astype(bool)
  assert pairs[0].shape == expected.shape
  np.testing.assert_array_equal(pair_mask[0], real)
  np.testing.assert_allclose(pairs[0][real], expected[real], atol=1e-4)


def test_bins_that_hold_only_the_rounding_of_samples(extractor):
  """Speech of half the bandwidth at twice its rate: above 4 kHz there is what int16 leaves."""
  wave = soxr.resample(noise(16_000, loudness=4_000), 8_000, 16_000).astype(np.int16)
  features, mask, pairs, pair_mask = extract(wave[None], jnp.array([len(wave)]))
  assert features[0, :, :40].mean() - features[0, :, -10:].mean() > 10
  expected = extractor(as_float(wave), sampling_rate=16_000, return_tensors="np")["input_features"]
  np.testing.assert_allclose(pairs[0][pair_mask[0]], expected[0], atol=2e-5)


def test_the_same_within_a_scan_and_beside_a_gradient():
  wave, lengths = noise(2, 8_000), jnp.array([8_000, 5_000])
  expected = extract(wave, lengths)[0]

  def loss(scale, wave):
    features, _ = kaldi_fbank(wave, lengths, CONFIG)
    return scale * jnp.sum(features), features

  def step(total, wave):
    (_, features), slope = jax.value_and_grad(loss, has_aux=True)(1.0, wave)
    return total + slope, features

  total, features = jax.jit(lambda waves: jax.lax.scan(step, 0.0, waves))(wave[None])
  np.testing.assert_array_equal(features[0], expected)
  np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)


def test_tone_with_an_offset_and_a_silent_stretch(extractor):
  time = np.arange(8000) / 16_000
  wave = 9_123 + 12_000 * np.sin(2 * np.pi * 440 * time) + noise(8000, loudness=5)
  wave[2_000:4_000] = 9_123  # frames of an offset alone reach the floor, as those of silence do
  wave[6_000:] = 0
  wave = wave.astype(np.int16)
  features, *_ = extract(wave[None], jnp.array([8000]))
  expected = extractor._extract_fbank_features(as_float(wave))
  np.testing.assert_allclose(features[0], expected, atol=1e-3)
  np.testing.assert_allclose(features[0].min(), np.log(2.0**-23), atol=1e-5)
  for frame in (15, 40):
    assert np.ptp(features[0, frame]) == 0


def test_programs_for_tpus_have_no_float64_spectrum():
  traced = extract.trace(noise(1, 8_000), jnp.array([8_000]))
  for platform, doubles in (("tpu", False), ("cpu", True)):
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("complex<f64>" in program) is doubles


def test_too_short_for_a_frame_or_a_pair_and_silence():
  for size, frames, pairs in [(1, 0, 0), (399, 0, 0), (400, 1, 0), (559, 1, 0), (560, 2, 1)]:
    wave = noise(1, size)
    features, mask, stacked, pair_mask = extract(wave, jnp.array([size]))
    assert features.shape == (1, frames, 80) and mask.sum() == frames
    assert stacked.shape == (1, -(-frames // 2), 160) and pair_mask.sum() == pairs
    assert np.isfinite(stacked).all()
  _, _, silent, pair_mask = extract(np.zeros((1, 16_000), np.int16), jnp.array([16_000]))
  assert pair_mask.sum() == 49 and not silent.any()


def test_padding_changes_nothing():
  lengths = jnp.array([8000, 5_039, 450, 0])
  wave = noise(4, 8000)
  real = np.arange(8000) < np.array(lengths)[:, None]
  loud = np.where(real, wave, noise(4, 8000, loudness=9_000)[::-1])
  longer = np.pad(loud, ((0, 0), (0, 1000)), constant_values=9)
  first = extract(np.where(real, wave, 0).astype(np.int16), lengths)
  for other in (extract(loud, lengths), extract(longer, lengths)):
    for ours, expected in zip(other, first, strict=True):
      ours = np.asarray(ours)
      np.testing.assert_allclose(ours[:, : expected.shape[1]], expected, atol=1e-5)
      assert not ours[:, expected.shape[1] :].any()
  assert first[1].sum(axis=1).tolist() == [48, 29, 1, 0]
  assert first[3].sum(axis=1).tolist() == [24, 14, 0, 0]


def test_bins_are_configured(extractor):
  theirs = transformers.SeamlessM4TFeatureExtractor(num_mel_bins=24, feature_size=24)
  wave = noise(2_000)
  config = KaldiFbankConfig(num_mel_bins=24)
  features, _ = kaldi_fbank(jnp.asarray(wave)[None], jnp.array([2_000]), config)
  np.testing.assert_allclose(features[0], theirs._extract_fbank_features(as_float(wave)), atol=1e-4)
  with pytest.raises(ValueError, match="num_mel_bins=0"):
    KaldiFbankConfig(num_mel_bins=0)
