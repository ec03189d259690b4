"""Granite-Speech's encoder against transformers', one waveform at a time.

In a batch of unequal lengths theirs hears the padding, see `slm_jax.models.speech_encoders.granite_speech`.
"""

import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder, open_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.granite_speech import GraniteSpeechConfig
from tests import encoder_contract as contract
from tests.torch_conformers import change, granite_features, randomised, recordings, rows

SHAPE: dict[str, Any] = dict(
  input_dim=80, num_layers=3, hidden_dim=16, num_heads=2, dim_head=6, output_dim=7, context_size=10,
  max_pos_emb=12, conv_kernel_size=5, feedforward_mult=2,
)  # fmt: skip
TEXT: dict[str, Any] = dict(
  model_type="granite", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
  num_attention_heads=1, num_key_value_heads=1, vocab_size=16, pad_token_id=0,
)  # fmt: skip
PROJECTOR: dict[str, Any] = dict(
  model_type="blip_2_qformer", hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
  intermediate_size=8, encoder_hidden_size=16,
)  # fmt: skip
# As the published extractor saves itself.
EXTRACTOR: dict[str, Any] = dict(
  feature_extractor_type="GraniteSpeechFeatureExtractor", feature_size=40, padding_side="right",
  padding_value=0.0, projector_downsample_rate=5, projector_window_size=15, sampling_rate=16_000,
  melspec_kwargs=dict(hop_length=160, n_fft=512, n_mels=40, sample_rate=16_000, win_length=400),
)  # fmt: skip
RNG = np.random.default_rng(0)
# Part of a last chunk, whole chunks and a frame that is dropped, less than one chunk, one frame.
LENGTHS = np.array([11_999, 6_400, 2_241, 257], np.int32)
AUDIO = (RNG.normal(size=(4, 11_999)) * [[3000], [20], [900], [3000]]).astype(np.int16)
COUNTS = [37, 20, 7, 1]


def saved(model, folder):
  model.save_pretrained(folder)
  (folder / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
  return folder


@pytest.fixture(scope="module")
def theirs():
  config = transformers.GraniteSpeechConfig(
    text_config=TEXT, encoder_config=SHAPE, projector_config=PROJECTOR, audio_token_index=3,
    has_lora_adapter=False,
  )  # fmt: skip
  return randomised(transformers.GraniteSpeechForConditionalGeneration(config))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  return saved(theirs, tmp_path_factory.mktemp("granite"))


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def check_parity(model, encoder, audio, lengths):
  """Features, counts, frames and the middle's logits of a padded batch."""
  tower = model.model.encoder
  middle = []
  hook = tower.out.register_forward_hook(lambda module, inputs, output: middle.append(output[0]))
  found = encoder(audio, lengths)
  features, _ = encoder.features(audio, lengths)
  counts = []
  for row, wave in enumerate(rows(audio, lengths)):
    expected = granite_features(wave, 40)
    counts.append(len(expected))
    np.testing.assert_allclose(features[row, : len(expected)], expected, atol=1e-4)
    with torch.no_grad():
      states = tower(torch.from_numpy(expected)[None]).last_hidden_state[0]
    np.testing.assert_allclose(found.frames[row, : len(expected)], states, atol=1e-4)
    logits = found.intermediate_ctc_logits[row, : len(expected)]
    np.testing.assert_allclose(logits, middle[row], atol=1e-4)
  hook.remove()
  contract.check_frame_counts(encoder, audio, lengths, counts)
  return counts


def test_every_row_of_a_padded_batch_is_theirs(theirs, ours):
  assert check_parity(theirs, ours, AUDIO, LENGTHS) == COUNTS
  assert ours(AUDIO, LENGTHS).ctc_logits is None


def test_padding_types_and_compute(ours):
  contract.check_padding_changes_nothing(ours, AUDIO, LENGTHS)
  contract.check_int16_is_float(ours, AUDIO, LENGTHS)
  contract.check_compute_options(ours, AUDIO, LENGTHS)
  contract.check_axes(ours.config)


def test_audio_without_a_frame(ours):
  out = ours(np.ones((2, 256), np.int16), [256, 0])
  assert out.frames.shape == (2, 0, 16) and out.intermediate_ctc_logits.shape == (2, 0, 7)
  out = ours(AUDIO[:2, :400], [400, 256])
  assert np.asarray(out.mask).tolist() == [[True], [False]]
  assert np.isfinite(np.asarray(out.frames)).all()


def test_saved_and_imported(folder, ours, tmp_path):
  contract.check_round_trip(ours, tmp_path / "own")
  contract.check_import(folder, tmp_path / "imported")


def test_a_bare_encoder_and_the_names_of_newer_folders(theirs, folder, ours, tmp_path):
  expected = ours(AUDIO, LENGTHS).frames
  bare = load_speech_encoder(saved(theirs.model.encoder, tmp_path / "bare"))
  np.testing.assert_array_equal(bare(AUDIO, LENGTHS).frames, expected)
  renamed = tmp_path / "renamed"
  shutil.copytree(folder, renamed)
  tensors = {name: value.contiguous() for name, value in theirs.state_dict().items()}
  kept = {name: value for name, value in tensors.items() if name.startswith("model.encoder.")}
  save_file(kept, renamed / "model.safetensors")
  np.testing.assert_array_equal(load_speech_encoder(renamed)(AUDIO, LENGTHS).frames, expected)


def test_the_published_frontend_where_the_folder_has_none(folder, ours, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  (copy / "preprocessor_config.json").unlink()
  assert open_speech_encoder(copy).config == ours.config


@pytest.mark.parametrize(
  ("file", "within", "changes", "says"),
  [
    ("config", "encoder_config", dict(context_size=13), "context=13, max_distance=12"),
    ("config", "encoder_config", dict(conv_kernel_size=4), "conv_kernel_size=4"),
    ("config", "encoder_config", dict(num_layers=1), "num_layers=1"),
    ("config", "encoder_config", dict(num_layers=4), "lacks 32 tensors .* encoder.layers.3"),
    ("config", "encoder_config", dict(num_layers=2), "no place for: encoder.layers.2"),
    ("config", "encoder_config", dict(num_heads=0, dim_head=None), "division"),
    ("config", "encoder_config", dict(input_dim=81), "input_dim 81"),
    ("config", "encoder_config", dict(input_dim=160), "feature_size is 40"),
    ("config", None, dict(encoder_config=3), "encoder_config is 3"),
    ("preprocessor_config", None, dict(sampling_rate=8000), "sampling_rate is 8000"),
    ("preprocessor_config", None, dict(hop_length=200), "hop_length is 200"),
    ("preprocessor_config", "melspec_kwargs", dict(n_fft=400), "n_fft is 400"),
    (
      "preprocessor_config",
      None,
      dict(feature_extractor_type="LasrFeatureExtractor"),
      'feature_extractor_type is "LasrFeatureExtractor"',
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
  # ibm-granite/granite-speech-3.3-8b
  shape: dict[str, Any] = dict(num_layers=16, output_dim=256)
  with torch.device("meta"):
    model = GraniteSpeechCTCEncoder(transformers.GraniteSpeechEncoderConfig(**shape))
  config = GraniteSpeechConfig(
    num_layers=16, model_dim=1024, num_heads=8, head_dim=128, ffn_dim=4096, conv_dim=2048,
    intermediate_vocab_size=256,
  )  # fmt: skip
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  statistics = 16 * 2 * 2048  # buffers there
  assert count == sum(parameter.numel() for parameter in model.parameters()) + statistics
  assert config.num_frames(160_000) == 500 and config.frame_samples == 320


def test_real_recordings(theirs, ours):
  found = recordings(40_000)
  if found is None:
    pytest.skip("no recordings in shared/data")
  check_parity(theirs, ours, *found)
