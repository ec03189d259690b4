"""Gemma 3n's audio tower against transformers', waveform by waveform."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from slm_jax.interop import load_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.gemma_audio_config import Gemma3nAudioConfig
from tests import encoder_contract as contract
from tests.torch_conformers import extracted, recordings, rows
from tests.torch_gemma_audio import randomised_tower

# Caps and clips so low that they matter.
SHAPE: dict[str, Any] = dict(
  hidden_size=16, conf_num_hidden_layers=2, conf_num_attention_heads=2, input_feat_size=16,
  sscp_conv_channel_size=[6, 4], conf_attention_logit_cap=1.5, gradient_clipping=1.2,
  conf_conv_kernel_size=4, rms_norm_eps=1e-2, sscp_conv_group_norm_eps=1e-2,
)  # fmt: skip
OPTIONS: dict[str, Any] = dict(
  conf_attention_chunk_size=4, conf_attention_context_left=3, conf_attention_context_right=2,
  conf_reduction_factor=1, conf_residual_weight=0.8, conf_num_hidden_layers=1,
)  # fmt: skip
RNG = np.random.default_rng(0)
# One frame alone, a length that its padding of 128 samples matters to; loud, soft and in between.
LENGTHS = np.array([30_080, 20_737, 2_321], np.int32)
AUDIO = (RNG.normal(size=(3, 30_080)) * [[3000], [20], [900]]).astype(np.int16)
COUNTS = [12, 8, 1]


def tower(**changes):
  config = transformers.Gemma3nAudioConfig(**{**SHAPE, **changes})
  return randomised_tower(transformers.Gemma3nAudioEncoder(config))


def saved(model, folder):
  model.save_pretrained(folder)
  extractor = transformers.Gemma3nAudioFeatureExtractor(feature_size=16)
  extractor.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def theirs():
  return tower()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  return saved(theirs, tmp_path_factory.mktemp("gemma3n"))


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def check_parity(model, folder, encoder, audio, lengths, atol=1e-4) -> list[int]:
  """Features, counts and frames of a batch here are those of each waveform alone there."""
  extractor = transformers.Gemma3nAudioFeatureExtractor.from_pretrained(folder)
  features, mask = (np.asarray(x) for x in encoder.features(audio, lengths))
  frames = np.asarray(encoder(audio, lengths).frames)
  counts = []
  for row, wave in enumerate(rows(audio, lengths)):
    inputs = extracted(extractor, [wave])
    real = inputs["input_features_mask"]
    count = int(real.sum())
    assert mask[row].sum() == count
    expected = inputs["input_features"][0, :count]
    np.testing.assert_allclose(features[row, :count], expected, atol=atol)
    with torch.no_grad():
      out = model(inputs["input_features"], ~real)
    counts.append(int((~out.audio_mel_mask).sum()))
    expected = out.last_hidden_state[0, : counts[-1]]
    np.testing.assert_allclose(frames[row, : counts[-1]], expected, atol=1e-4)
  contract.check_frame_counts(encoder, audio, lengths, counts)
  return counts


def test_a_batch_is_theirs(theirs, folder, ours):
  assert check_parity(theirs, folder, ours, AUDIO, LENGTHS) == COUNTS


def test_options_are_theirs(tmp_path):
  model = tower(**OPTIONS)
  encoder = load_speech_encoder(saved(model, tmp_path))
  counts = check_parity(model, tmp_path, encoder, AUDIO[:2, :18_000], np.array([18_000, 9_321]))
  assert counts == [28, 14] and encoder.config.frame_samples == 640


def test_padding_types_and_compute(ours):
  contract.check_padding_changes_nothing(ours, AUDIO, LENGTHS)
  contract.check_int16_is_float(ours, AUDIO, LENGTHS)
  contract.check_compute_options(ours, AUDIO, LENGTHS)
  contract.check_axes(ours.config)


def test_a_frame_hears_nothing_later_than_its_window(ours):
  """Nothing but subsampling looks ahead, by six features' hops and a window."""
  config = ours.config
  changed = AUDIO[:1].copy()
  start = 5 * config.frame_samples
  changed[:, start:] = 0
  first, second = (np.asarray(ours(x, LENGTHS[:1]).frames[0]) for x in (AUDIO[:1], changed))
  reach = 6 * config.log_mel.hop + config.log_mel.window
  heard = [t * config.frame_samples + reach > start for t in range(len(first))]
  assert (np.abs(first - second).max(axis=1) > 0).tolist() == heard


def test_audio_without_a_frame(ours):
  for num_samples in (1, 512):
    out = ours(np.ones((2, num_samples), np.int16), [num_samples, 0])
    assert out.frames.shape == (2, 0, 16) and out.mask.shape == (2, 0)
  out = ours(AUDIO[:2, :2400], [513, 512])
  assert np.asarray(out.mask).tolist() == [[True], [False]]
  assert np.isfinite(np.asarray(out.frames)).all()


def test_published_size():
  with torch.device("meta"):
    model = transformers.Gemma3nAudioEncoder(transformers.Gemma3nAudioConfig())
  config = Gemma3nAudioConfig()
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  assert count == sum(parameter.numel() for parameter in model.parameters())
  assert config.num_frames(160_000) == 63 and config.frame_samples == 2560


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(vocab_size=5), "vocab_size=5"),
    (dict(num_layers=0), "'num_layers': 0"),
    (dict(model_dim=15, num_heads=5), "model_dim=15"),
    (dict(subsampling_channels=(3,)), r"subsampling_channels=\(3,\)"),
    (dict(left_context=-1), "left_context=-1"),
    (dict(logit_cap=0.0), "logit_cap=0.0"),
    (dict(reduction=0), "reduction=0"),
  ],
)
def test_impossible_shapes(changes, says):
  with pytest.raises(ValueError, match=says):
    Gemma3nAudioConfig(**changes)


def test_real_recordings(theirs, folder, ours):
  found = recordings(40_000)
  if found is None:
    pytest.skip("no recordings in shared/data")
  # Where speech is all but silent, fp32 itself leaves logarithms no more digits.
  check_parity(theirs, folder, ours, *found, atol=1e-3)
