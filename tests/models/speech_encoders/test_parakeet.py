"""Parakeet against transformers', with and without its options."""

import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from slm_jax.audio.parakeet_log_mel import ParakeetLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder, open_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.parakeet import ParakeetConfig
from tests import encoder_contract as contract
from tests.torch_conformers import change, extracted, randomised, recordings, rows

SHAPE: dict[str, Any] = dict(
  hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
  subsampling_conv_channels=4,
)  # fmt: skip
OPTIONS: dict[str, Any] = dict(
  attention_bias=False, convolution_bias=False, scale_input=False, num_mel_bins=128,
  subsampling_factor=4, conv_kernel_size=5, num_hidden_layers=1,
)  # fmt: skip
CLASSES: dict[str, Any] = dict(vocab_size=11, pad_token_id=10)
RNG = np.random.default_rng(0)
# One sample beyond a hop and one below, an odd number of mel frames, one frame; loud and soft.
LENGTHS = np.array([20_001, 12_799, 3_200, 400], np.int32)
AUDIO = (RNG.normal(size=(4, 20_001)) * [[3000], [20], [900], [3000]]).astype(np.int16)
COUNTS = [16, 10, 3, 1]


def saved(model, folder, bins: int = 80):
  model.save_pretrained(folder)
  transformers.ParakeetFeatureExtractor(feature_size=bins).save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def theirs():
  config = transformers.ParakeetCTCConfig(encoder_config=SHAPE, **CLASSES)
  return randomised(transformers.ParakeetForCTC(config))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  return saved(theirs, tmp_path_factory.mktemp("parakeet"))


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def check_parity(model, folder, encoder, audio, lengths):
  """Features, counts, frames and logits of one padded batch."""
  extractor = transformers.ParakeetFeatureExtractor.from_pretrained(folder)
  inputs = extracted(extractor, rows(audio, lengths))
  with torch.no_grad():
    out = model(**inputs, output_hidden_states=True)
  counts = model._get_subsampling_output_length(inputs["attention_mask"].sum(1)).tolist()
  contract.check_frame_counts(encoder, audio, lengths, counts)
  features, mask = encoder.features(audio, lengths)
  found = encoder(audio, lengths)
  for row, count in enumerate(counts):
    real = int(inputs["attention_mask"][row].sum())
    assert int(np.asarray(mask)[row].sum()) == real
    expected = inputs["input_features"][row, :real]
    # Both are about this far from float64, where a bin is much weaker than its neighbours.
    np.testing.assert_allclose(features[row, :real], expected, atol=1e-3)
    states = out.hidden_states[-1][row, :count]
    np.testing.assert_allclose(found.frames[row, :count], states, atol=1e-4)
    logits = out.logits[row, :count]
    np.testing.assert_allclose(found.ctc_logits[row, :count], logits, atol=1e-4)


def test_a_padded_batch_is_theirs(theirs, folder, ours):
  check_parity(theirs, folder, ours, AUDIO, LENGTHS)
  assert [ours.config.num_frames(int(n)) for n in LENGTHS] == COUNTS
  assert ours(AUDIO, LENGTHS).blank_id == 10


def test_options_are_theirs(tmp_path):
  config = transformers.ParakeetCTCConfig(encoder_config={**SHAPE, **OPTIONS}, **CLASSES)
  model = randomised(transformers.ParakeetForCTC(config))
  encoder = load_speech_encoder(saved(model, tmp_path, bins=128))
  check_parity(model, tmp_path, encoder, AUDIO[:2, :9000], np.array([9000, 4_321]))
  assert encoder.config.frame_samples == 640


def test_padding_types_and_compute(ours):
  audio, lengths = AUDIO[:3], LENGTHS[:3]
  contract.check_padding_changes_nothing(ours, audio, lengths)
  contract.check_int16_is_float(ours, audio, lengths)
  contract.check_compute_options(ours, audio, lengths)
  contract.check_axes(ours.config)


def test_audio_without_a_frame(ours):
  for num_samples in (1, 159):
    out = ours(np.ones((2, num_samples), np.int16), [num_samples, 0])
    assert out.frames.shape == (2, 0, 16) and out.ctc_logits.shape == (2, 0, 11)
  # One feature has no deviation: theirs is NaN, ours 0.
  out = ours(AUDIO[:2, :1000], [160, 100])
  assert np.asarray(out.mask).tolist() == [[True], [False]]
  assert np.isfinite(np.asarray(out.frames)).all()


def test_saved_and_imported(folder, ours, tmp_path):
  contract.check_round_trip(ours, tmp_path / "own")
  contract.check_import(folder, tmp_path / "imported")


def test_a_bare_encoder_and_one_of_a_transducer(theirs, ours, tmp_path):
  expected = ours(AUDIO, LENGTHS).frames
  bare = load_speech_encoder(saved(theirs.encoder, tmp_path / "bare"))
  config = transformers.ParakeetTDTConfig(
    encoder_config=SHAPE, vocab_size=7, decoder_hidden_size=8, num_decoder_layers=1,
    blank_token_id=6, pad_token_id=2,
  )  # fmt: skip
  transducer = transformers.ParakeetForTDT(config)
  transducer.encoder.load_state_dict(theirs.encoder.state_dict())
  for encoder in (bare, load_speech_encoder(saved(transducer, tmp_path / "transducer"))):
    out = encoder(AUDIO, LENGTHS)
    np.testing.assert_array_equal(out.frames, expected)
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
    ("config", "encoder_config", dict(subsampling_conv_kernel_size=5), "kernel_size is 5"),
    ("config", "encoder_config", dict(subsampling_conv_stride=3), "stride is 3"),
    ("config", "encoder_config", dict(subsampling_factor=6), "subsampling_factor=6"),
    ("config", "encoder_config", dict(conv_kernel_size=8), "conv_kernel_size=8"),
    ("config", "encoder_config", dict(num_attention_heads=3), "num_heads=3"),
    ("config", "encoder_config", dict(num_hidden_layers=3), "lacks 39 tensors"),
    ("config", "encoder_config", dict(attention_bias=False), "no place for"),
    ("config", None, dict(pad_token_id=11), "blank_id=11"),
    ("config", None, dict(encoder_config=3), "encoder_config is 3"),
    ("config", None, dict(vocab_size=12), r"ctc_head.bias is \[11\], expected \[12\]"),
    ("preprocessor_config", None, dict(feature_size=128), "feature_size is 128"),
    ("preprocessor_config", None, dict(sampling_rate=8000), "sampling_rate is 8000"),
    ("preprocessor_config", None, dict(win_length=600), "window=600"),
    (
      "preprocessor_config",
      None,
      dict(feature_extractor_type="WhisperFeatureExtractor"),
      'feature_extractor_type is "WhisperFeatureExtractor"',
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
    model = transformers.ParakeetForCTC(transformers.ParakeetCTCConfig())  # parakeet-ctc-0.6b
  config = ParakeetConfig(
    num_layers=24, model_dim=1024, num_heads=8, ffn_dim=4096, vocab_size=1025, blank_id=1024
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  statistics = 24 * 2 * 1024  # buffers there
  assert count == sum(parameter.numel() for parameter in model.parameters()) + statistics
  assert config.num_frames(160_000) == 125 and config.frame_samples == 1280
  assert config.log_mel == ParakeetLogMelConfig()


def test_real_recordings(theirs, folder, ours):
  found = recordings(40_000)
  if found is None:
    pytest.skip("no recordings in shared/data")
  check_parity(theirs, folder, ours, *found)
