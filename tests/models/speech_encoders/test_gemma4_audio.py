"""Gemma 4's audio tower against transformers', in padded batches."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from slm_jax.interop import load_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.gemma_audio_config import Gemma4AudioConfig
from tests import encoder_contract as contract
from tests.torch_conformers import extracted, recordings, rows
from tests.torch_gemma_audio import randomised_tower

# Caps and clips so low that they matter.
SHAPE: dict[str, Any] = dict(
  hidden_size=16, num_hidden_layers=2, num_attention_heads=2, subsampling_conv_channels=[16, 4],
  output_proj_dims=12, attention_logit_cap=1.5, gradient_clipping=1.2, conv_kernel_size=4,
  rms_norm_eps=1e-2,
)  # fmt: skip
OPTIONS: dict[str, Any] = dict(
  attention_chunk_size=4, attention_context_left=5, residual_weight=0.8, num_hidden_layers=1,
  use_clipped_linears=False,
)  # fmt: skip
RNG = np.random.default_rng(0)
# Whole frames, one sample too few for the last one, just one frame; loud, soft and in between.
LENGTHS = np.array([20_001, 12_800, 161], np.int32)
AUDIO = (RNG.normal(size=(3, 20_080)) * [[3000], [20], [900]]).astype(np.int16)
COUNTS = [32, 20, 1]


def tower(**changes):
  config = transformers.Gemma4AudioConfig(**{**SHAPE, **changes})
  return randomised_tower(transformers.Gemma4AudioModel(config))


def saved(model, folder):
  model.save_pretrained(folder)
  extractor = transformers.Gemma4AudioFeatureExtractor(feature_size=16)
  extractor.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def theirs():
  return tower()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  return saved(theirs, tmp_path_factory.mktemp("gemma4"))


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def check_parity(model, folder, encoder, audio, lengths, atol=1e-4) -> list[int]:
  """Features, counts and frames of one padded batch."""
  extractor = transformers.Gemma4AudioFeatureExtractor.from_pretrained(folder)
  inputs = extracted(extractor, rows(audio, lengths))
  with torch.no_grad():
    out = model(inputs["input_features"], inputs["input_features_mask"])
  counts = out.attention_mask.sum(1).tolist()
  contract.check_frame_counts(encoder, audio, lengths, counts)
  features, mask = (np.asarray(x) for x in encoder.features(audio, lengths))
  frames = np.asarray(encoder(audio, lengths).frames)
  for row, count in enumerate(counts):
    real = int(inputs["input_features_mask"][row].sum())
    assert mask[row].sum() == real
    expected = inputs["input_features"][row, :real]
    np.testing.assert_allclose(features[row, :real], expected, atol=atol)
    expected = out.last_hidden_state[row, :count]
    np.testing.assert_allclose(frames[row, :count], expected, atol=1e-4)
  return counts


def test_a_batch_is_theirs(theirs, folder, ours):
  assert check_parity(theirs, folder, ours, AUDIO, LENGTHS) == COUNTS


def test_options_are_theirs(tmp_path):
  model = tower(**OPTIONS)
  encoder = load_speech_encoder(saved(model, tmp_path))
  counts = check_parity(model, tmp_path, encoder, AUDIO[:2, :18_000], np.array([18_000, 9_321]))
  assert counts == [28, 15]


def test_padding_types_and_compute(ours):
  contract.check_padding_changes_nothing(ours, AUDIO, LENGTHS)
  contract.check_int16_is_float(ours, AUDIO, LENGTHS)
  contract.check_compute_options(ours, AUDIO, LENGTHS)
  contract.check_axes(ours.config)


def test_audio_without_a_frame(ours):
  for num_samples in (1, 160):
    out = ours(np.ones((2, num_samples), np.int16), [num_samples, 0])
    assert out.frames.shape == (2, 0, 12) and out.mask.shape == (2, 0)
  out = ours(AUDIO[:2, :700], [161, 160])
  assert np.asarray(out.mask).tolist() == [[True], [False]]
  assert np.isfinite(np.asarray(out.frames)).all()


def test_published_size():
  with torch.device("meta"):
    model = transformers.Gemma4AudioModel(transformers.Gemma4AudioConfig())
  config = Gemma4AudioConfig()
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  bounds = 12 * 10 * 4  # of each layer's linear layers; buffers there
  assert count == sum(parameter.numel() for parameter in model.parameters()) + bounds
  assert config.num_frames(160_000) == 250 and config.frame_samples == 640
  assert config.frame_dim == 1536


def test_impossible_shapes():
  with pytest.raises(ValueError, match="output_dim=0"):
    Gemma4AudioConfig(output_dim=0)


def test_real_recordings(theirs, folder, ours):
  found = recordings(40_000)
  if found is None:
    pytest.skip("no recordings in shared/data")
  # Where speech is all but silent, fp32 itself leaves logarithms no more digits.
  check_parity(theirs, folder, ours, *found, atol=1e-3)
