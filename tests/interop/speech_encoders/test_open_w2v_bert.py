"""Folders of w2v-BERT 2.0: with and without a head, where settings lie, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder, open_speech_encoder
from tests import encoder_contract as contract

SHAPE: dict[str, Any] = dict(
  hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
  feature_projection_input_dim=32, conv_depthwise_kernel_size=3, vocab_size=5, pad_token_id=4,
  left_max_position_embeddings=3, right_max_position_embeddings=1, add_adapter=True,
)  # fmt: skip
AUDIO = (np.random.default_rng(0).normal(size=(2, 3_000)) * 1000).astype(np.int16)
LENGTHS = [3_000, 2_000]


@pytest.fixture(scope="module")
def theirs():
  torch.manual_seed(0)
  model = transformers.Wav2Vec2BertForCTC(transformers.Wav2Vec2BertConfig(**SHAPE)).eval()
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter.data, 0.05, 0.3)
  return model


def extractor(**settings):
  return transformers.SeamlessM4TFeatureExtractor(
    **{**dict(feature_size=16, num_mel_bins=16, padding_value=1.0), **settings}
  )


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  path = tmp_path_factory.mktemp("ctc")
  theirs.save_pretrained(path)
  extractor().save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def change(file: Path, **changes):
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_saved_and_imported(folder, ours, tmp_path):
  contract.check_round_trip(ours, tmp_path / "own")
  contract.check_import(folder, tmp_path / "imported")


def test_the_bare_model_has_the_same_frames_and_no_head(theirs, ours, tmp_path):
  theirs.wav2vec2_bert.save_pretrained(tmp_path)
  extractor().save_pretrained(tmp_path)
  tensors = json.dumps(sorted(theirs.wav2vec2_bert.state_dict()))
  assert "masked_spec_embed" in tensors and "wav2vec2_bert." not in tensors
  bare = load_speech_encoder(tmp_path)
  assert bare.config.vocab_size == 0
  out = bare(AUDIO, LENGTHS)
  np.testing.assert_array_equal(out.frames, ours(AUDIO, LENGTHS).frames)
  assert out.ctc_logits is None


def test_another_head_is_passed_over(theirs, ours, tmp_path):
  model = transformers.Wav2Vec2BertForXVector(transformers.Wav2Vec2BertConfig(**SHAPE))
  model.wav2vec2_bert.load_state_dict(theirs.wav2vec2_bert.state_dict())
  model.save_pretrained(tmp_path)
  found = load_speech_encoder(tmp_path)
  assert found.config.vocab_size == 0
  frames_of_ours = {name: part for name, part in ours.params.items() if name != "ctc_head"}
  jax.tree.map(np.testing.assert_array_equal, found.params, frames_of_ours)


def test_settings_in_the_processor_or_nowhere_are_the_same(folder, ours, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  settings = json.loads((copy / "preprocessor_config.json").read_text())
  (copy / "preprocessor_config.json").unlink()
  assert open_speech_encoder(copy).config == ours.config
  (copy / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
  assert open_speech_encoder(copy).config == ours.config
  settings["num_mel_bins"] = 17
  (copy / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
  with pytest.raises(UserError, match="num_mel_bins is 17"):
    open_speech_encoder(copy)


def test_what_config_json_leaves_out_is_as_transformers_has_it(folder, tmp_path):
  # Every value that is the default of the class and of this folder alike may be left out.
  record = json.loads((folder / "config.json").read_text())
  published = transformers.Wav2Vec2BertConfig().to_dict()
  shutil.copytree(folder, tmp_path / "copy")
  short = {key: value for key, value in record.items() if published.get(key) != value}
  short["model_type"] = "wav2vec2-bert"
  assert "hidden_act" not in short and "adapter_stride" not in short
  (tmp_path / "copy" / "config.json").write_text(json.dumps(short))
  assert open_speech_encoder(tmp_path / "copy").config == open_speech_encoder(folder).config


@pytest.mark.parametrize(
  ("file", "changes", "says"),
  [
    ("config.json", dict(hidden_act="mish"), "hidden_act is 'mish', .* gelu"),
    ("config.json", dict(adapter_act="tanh"), "adapter_act is 'tanh'"),
    ("config.json", dict(position_embeddings_type="alibi"), "'alibi', .* relative_key, .*, None"),
    ("config.json", dict(num_attention_heads=3), "width 8.*num_heads=3"),
    ("config.json", dict(conv_depthwise_kernel_size=4), "conv_kernel_size=4"),
    ("config.json", dict(conv_depthwise_kernel_size=5), "depthwise_conv.weight"),
    ("config.json", dict(feature_projection_input_dim=33), "feature_projection_input_dim 33"),
    ("config.json", dict(num_hidden_layers=3), "lacks .* wav2vec2_bert.encoder.layers.2"),
    ("config.json", dict(num_hidden_layers=1), "no place for: wav2vec2_bert.encoder.layers.1"),
    ("config.json", dict(add_adapter=False), "no place for: wav2vec2_bert.adapter"),
    (
      "config.json",
      dict(add_adapter=False, use_intermediate_ffn_before_adapter=True),
      "use_intermediate_ffn_before_adapter is true and add_adapter false",
    ),
    ("config.json", dict(adapter_kernel_size=5), "kernel_size=5, stride=2"),
    ("config.json", dict(adapter_stride="two"), "does not describe a w2v-BERT"),
    ("config.json", dict(pad_token_id=None), "pad_token_id"),
    ("config.json", dict(pad_token_id=5), "blank_id=5"),
    ("preprocessor_config.json", dict(stride=1), "stride is 1, this program supports 2"),
    ("preprocessor_config.json", dict(num_mel_bins=80), "num_mel_bins is 80"),
    ("preprocessor_config.json", dict(sampling_rate=8000), "sampling_rate is 8000"),
    ("preprocessor_config.json", dict(padding_side="left"), 'padding_side is "left"'),
    (
      "preprocessor_config.json",
      dict(feature_extractor_type="Wav2Vec2FeatureExtractor"),
      "feature_extractor_type is",
    ),
  ],
)
def test_what_is_not_supported_is_named(folder, tmp_path, file, changes, says):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  change(copy / file, **changes)
  with pytest.raises(UserError, match=says) as raised:
    open_speech_encoder(copy)
  assert "\n" not in str(raised.value)
