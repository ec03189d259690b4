"""LASR against transformers', with and without its options."""

import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from slm_jax.audio.lasr_log_mel import LasrLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder, open_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.lasr import LasrConfig
from tests import encoder_contract as contract
from tests.torch_conformers import change, extracted, randomised, recordings, rows

SHAPE: dict[str, Any] = dict(
  hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
  subsampling_conv_channels=4,
)  # fmt: skip
OPTIONS: dict[str, Any] = dict(
  attention_bias=True, convolution_bias=True, num_mel_bins=80, conv_kernel_size=5,
  subsampling_conv_kernel_size=4, subsampling_conv_stride=3, num_hidden_layers=1,
  feed_forward_residual_weights=[0.7, 1.2], conv_residual_weights=[0.4, 1.7], layer_norm_eps=1e-3,
  rope_parameters=dict(rope_type="default", rope_theta=50.0),
)  # fmt: skip
CLASSES: dict[str, Any] = dict(vocab_size=11, pad_token_id=0)
RNG = np.random.default_rng(0)
# Whole windows, one sample too few for the last one, just one frame; loud, soft and in between.
LENGTHS = np.array([20_080, 12_879, 2_320], np.int32)
AUDIO = (RNG.normal(size=(3, 20_080)) * [[3000], [20], [900]]).astype(np.int16)
COUNTS = [28, 17, 1]


def saved(model, folder, bins: int = 128):
  model.save_pretrained(folder)
  transformers.LasrFeatureExtractor(feature_size=bins).save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def theirs():
  config = transformers.LasrCTCConfig(encoder_config=SHAPE, **CLASSES)
  return randomised(transformers.LasrForCTC(config))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  return saved(theirs, tmp_path_factory.mktemp("lasr"))


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def check_parity(model, folder, encoder, audio, lengths, atol=1e-4):
  """Features, counts, frames and logits of one padded batch."""
  extractor = transformers.LasrFeatureExtractor.from_pretrained(folder)
  inputs = extracted(extractor, rows(audio, lengths))
  with torch.no_grad():
    out = model(**inputs)
    states = model.encoder(**inputs).last_hidden_state
  counts = model._get_subsampling_output_length(inputs["attention_mask"].sum(1)).tolist()
  contract.check_frame_counts(encoder, audio, lengths, counts)
  features, mask = encoder.features(audio, lengths)
  found = encoder(audio, lengths)
  for row, count in enumerate(counts):
    real = int(inputs["attention_mask"][row].sum())
    assert int(np.asarray(mask)[row].sum()) == real
    expected = inputs["input_features"][row, :real]
    np.testing.assert_allclose(features[row, :real], expected, atol=atol)
    np.testing.assert_allclose(found.frames[row, :count], states[row, :count], atol=1e-4)
    logits = out.logits[row, :count]
    np.testing.assert_allclose(found.ctc_logits[row, :count], logits, atol=1e-4)


def test_a_padded_batch_is_theirs(theirs, folder, ours):
  check_parity(theirs, folder, ours, AUDIO, LENGTHS)
  assert [ours.config.num_frames(int(n)) for n in LENGTHS] == COUNTS
  assert ours(AUDIO, LENGTHS).blank_id == 0


def test_options_are_theirs(tmp_path):
  config = transformers.LasrCTCConfig(encoder_config={**SHAPE, **OPTIONS}, **CLASSES)
  model = randomised(transformers.LasrForCTC(config))
  encoder = load_speech_encoder(saved(model, tmp_path, bins=80))
  check_parity(model, tmp_path, encoder, AUDIO[:2, :18_000], np.array([18_000, 9_321]))
  assert encoder.config.frame_samples == 1440


def test_padding_types_and_compute(ours):
  contract.check_padding_changes_nothing(ours, AUDIO, LENGTHS)
  contract.check_int16_is_float(ours, AUDIO, LENGTHS)
  contract.check_compute_options(ours, AUDIO, LENGTHS)
  contract.check_axes(ours.config)


def test_audio_without_a_frame(ours):
  for num_samples in (1, 500, 2319):
    out = ours(np.ones((2, num_samples), np.int16), [num_samples, 0])
    assert out.frames.shape == (2, 0, 16) and out.ctc_logits.shape == (2, 0, 11)
  out = ours(AUDIO[:2, :2400], [2320, 300])
  assert np.asarray(out.mask).tolist() == [[True], [False]]
  assert np.isfinite(np.asarray(out.frames)).all()


def test_saved_and_imported(folder, ours, tmp_path):
  contract.check_round_trip(ours, tmp_path / "own")
  contract.check_import(folder, tmp_path / "imported")


def test_a_bare_encoder(theirs, ours, tmp_path):
  out = load_speech_encoder(saved(theirs.encoder, tmp_path))(AUDIO, LENGTHS)
  np.testing.assert_array_equal(out.frames, ours(AUDIO, LENGTHS).frames)
  assert out.ctc_logits is None


def test_the_published_frontend_where_the_folder_has_none(folder, ours, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  (copy / "preprocessor_config.json").unlink()
  assert open_speech_encoder(copy).config == ours.config


@pytest.mark.parametrize(
  ("file", "within", "changes", "says"),
  [
    ("config", "encoder_config", dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
    (
      "config",
      "encoder_config",
      dict(rope_parameters=dict(rope_type="linear", factor=2.0)),
      'rope_parameters: rope_type is "linear"',
    ),
    ("config", "encoder_config", dict(subsampling_conv_stride=7), "subsampling_stride=7"),
    ("config", "encoder_config", dict(conv_residual_weights=[1.0]), r"conv_weights=\(1.0,\)"),
    ("config", "encoder_config", dict(conv_kernel_size=0), "'conv_kernel_size': 0"),
    ("config", "encoder_config", dict(num_attention_heads=3), "num_heads=3"),
    ("config", "encoder_config", dict(num_hidden_layers=3), "lacks 20 tensors"),
    ("config", "encoder_config", dict(num_hidden_layers=1), "no place for"),
    ("config", None, dict(pad_token_id=11), "blank_id=11"),
    ("config", None, dict(encoder_config=3), "encoder_config is 3"),
    ("config", None, dict(vocab_size=12), r"ctc_head.bias is \[11\], expected \[12\]"),
    ("preprocessor_config", None, dict(feature_size=80), "feature_size is 80"),
    ("preprocessor_config", None, dict(sampling_rate=8000), "sampling_rate is 8000"),
    ("preprocessor_config", None, dict(win_length=600), "window=600"),
    (
      "preprocessor_config",
      None,
      dict(feature_extractor_type="ParakeetFeatureExtractor"),
      'feature_extractor_type is "ParakeetFeatureExtractor"',
    ),
  ],
)
def test_what_is_not_supported_is_named(folder, tmp_path, file, within, changes, says):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  change(copy / f"{file}.json", within, **changes)
  with pytest.raises(UserError, match=says) as raised:
    open_speech_encoder(copy)
  assert "\n" not in str(raised.value)


def test_published_size():
  with torch.device("meta"):
    model = transformers.LasrForCTC(transformers.LasrCTCConfig())  # google/medasr
  config = LasrConfig(num_layers=17, model_dim=512, num_heads=8, ffn_dim=2048, vocab_size=512)
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  statistics = 17 * 2 * 512  # buffers there
  assert count == sum(parameter.numel() for parameter in model.parameters()) + statistics
  assert config.num_frames(160_000) == 247 and config.frame_samples == 640
  assert config.log_mel == LasrLogMelConfig()


def test_real_recordings(theirs, folder, ours):
  found = recordings(40_000)
  if found is None:
    pytest.skip("no recordings in shared/data")
  # Where a bin is much weaker than its neighbours, fp32 itself leaves its logarithm no more digits.
  check_parity(theirs, folder, ours, *found, atol=1e-3)
