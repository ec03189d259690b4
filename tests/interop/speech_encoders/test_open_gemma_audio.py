"""Folders of Gemma's audio towers: alone, in the whole model, where settings lie, what is refused."""

import json
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder, open_speech_encoder
from tests import encoder_contract as contract
from tests.torch_conformers import change
from tests.torch_gemma_audio import randomised_tower

GEMMA3N: dict[str, Any] = dict(
  hidden_size=8, conf_num_hidden_layers=2, conf_num_attention_heads=2, input_feat_size=16,
  sscp_conv_channel_size=[6, 4],
)  # fmt: skip
GEMMA4: dict[str, Any] = dict(
  hidden_size=8, num_hidden_layers=2, num_attention_heads=2, subsampling_conv_channels=[16, 4],
  output_proj_dims=12,
)  # fmt: skip
TEXT: dict[str, Any] = dict(
  hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
  intermediate_size=8, vocab_size=32, head_dim=8, vocab_size_per_layer_input=32,
  hidden_size_per_layer_input=4, num_kv_shared_layers=0,
)  # fmt: skip
KINDS = ("gemma3n", "gemma4")


def tower(kind: str):
  if kind == "gemma3n":
    model = transformers.Gemma3nAudioEncoder(transformers.Gemma3nAudioConfig(**GEMMA3N))
  else:
    model = transformers.Gemma4AudioModel(transformers.Gemma4AudioConfig(**GEMMA4))
  return randomised_tower(model)


def extractor(kind: str, **settings):
  name = f"{kind.capitalize()}AudioFeatureExtractor"
  return getattr(transformers, name)(**{"feature_size": 16, **settings})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A tower's folder of each kind."""
  found = {}
  for kind in KINDS:
    found[kind] = tmp_path_factory.mktemp(kind)
    tower(kind).save_pretrained(found[kind])
    extractor(kind).save_pretrained(found[kind])
  return found


def same(first, second) -> None:
  assert first.config == second.config
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_imported(folders, tmp_path, kind):
  contract.check_round_trip(load_speech_encoder(folders[kind]), tmp_path / "own")
  contract.check_import(folders[kind], tmp_path / "imported")


def whole_gemma3n(monkeypatch):
  text = {**TEXT, "laurel_rank": 2, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 2}
  config = transformers.Gemma3nConfig(text_config=text, audio_config=GEMMA3N)
  make = transformers.AutoModel.from_config

  class Vision(torch.nn.Module):
    """In place of the image tower, which a package makes that is not here."""

    def __init__(self):
      super().__init__()
      self.input_min = torch.nn.Buffer(torch.tensor(-float("inf")))
      self.weight = torch.nn.Parameter(torch.ones(3))

  def from_config(config):
    return Vision() if config.model_type == "gemma3n_vision" else make(config)

  monkeypatch.setattr(transformers.AutoModel, "from_config", from_config)
  return transformers.Gemma3nForConditionalGeneration(config)


def whole_gemma4():
  config = transformers.Gemma4Config(
    text_config={**TEXT, "global_head_dim": 8}, audio_config=GEMMA4, vision_config=None
  )
  return transformers.Gemma4ForConditionalGeneration(config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inner", [False, True], ids=["with-head", "without-head"])
def test_a_tower_in_the_whole_model(folders, tmp_path, monkeypatch, kind, inner):
  model = whole_gemma3n(monkeypatch) if kind == "gemma3n" else whole_gemma4()
  inner_model: Any = model.model
  inner_model.audio_tower.load_state_dict(tower(kind).state_dict())
  (inner_model if inner else model).save_pretrained(tmp_path)
  settings = {"feature_extractor": json.loads(extractor(kind).to_json_string())}
  (tmp_path / "processor_config.json").write_text(json.dumps(settings))
  assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
  same(load_speech_encoder(tmp_path), load_speech_encoder(folders[kind]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bounds_that_are_infinite_bind_nothing(folders, dtype):
  bounds = load_speech_encoder(folders["gemma4"], dtype=dtype).params["layers"]["ffn_in"]["wi"]
  largest = float(ml_dtypes.finfo(dtype).max)
  for name, sign in (("input_min", -1), ("output_max", 1)):
    tight, none = np.asarray(bounds[name], np.float32)
    assert 0.3 <= sign * tight <= 0.81 and none == np.float32(sign * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_frontend_where_the_folder_has_none(folders, tmp_path, kind):
  copy = tmp_path / "copy"
  shutil.copytree(folders[kind], copy)
  file = copy / "preprocessor_config.json"
  settings = json.loads(file.read_text())
  file.write_text(json.dumps({"feature_size": settings["feature_size"]}))
  same(load_speech_encoder(copy), load_speech_encoder(folders[kind]))
  file.unlink()
  # 128 bins then, which these small weights are not for.
  says = "input_feat_size is 16" if kind == "gemma3n" else r"input_proj_linear.weight is \[8, 16\]"
  with pytest.raises(UserError, match=says):
    open_speech_encoder(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_frontend_settings_are_read(tmp_path, kind):
  tower(kind).save_pretrained(tmp_path)
  settings = dict(frame_length_ms=30.0, hop_length_ms=12.5, min_frequency=100.0, mel_floor=0.5)
  extractor(kind, **settings, preemphasis=0.5, preemphasis_htk_flavor=False).save_pretrained(
    tmp_path
  )
  found = open_speech_encoder(tmp_path).config.log_mel  # pyright: ignore
  assert (found.window, found.hop, found.min_hz, found.floor) == (480, 200, 100.0, 0.5)
  assert (found.preemphasis, found.preemphasis_in_frame) == (0.5, False)
  assert (found.lead, found.fft_size) == ((0, 1024) if kind == "gemma3n" else (240, 512))


@pytest.mark.parametrize(
  ("kind", "file", "changes", "says"),
  [
    ("gemma3n", "config", dict(sscp_conv_stride_size=[[2, 2], [1, 2]]), "sscp_conv_stride_size is"),
    ("gemma3n", "config", dict(sscp_conv_kernel_size=[[5, 3], [3, 3]]), "sscp_conv_kernel_size is"),
    ("gemma3n", "config", dict(input_feat_size=32), "input_feat_size is 32"),
    ("gemma3n", "config", dict(conf_num_attention_heads=3), "num_heads=3"),
    ("gemma3n", "config", dict(conf_num_hidden_layers=3), "lacks 22 tensors"),
    ("gemma3n", "config", dict(conf_num_hidden_layers=1), "no place for"),
    ("gemma3n", "config", dict(hidden_size="x"), "does not describe Gemma 3n's audio tower"),
    ("gemma3n", "config", dict(model_type="gemma3n"), "has no audio tower"),
    ("gemma4", "config", dict(hidden_act="gelu"), 'hidden_act is "gelu"'),
    ("gemma4", "config", dict(attention_context_right=2), "attention_context_right is 2"),
    ("gemma4", "config", dict(attention_chunk_size=24), "attention_chunk_size is 24"),
    ("gemma4", "config", dict(attention_context_left=1), "attention_context_left 1"),
    ("gemma4", "config", dict(attention_invalid_logits_value=0.0), "invalid_logits_value is 0.0"),
    ("gemma4", "config", dict(use_clipped_linears=False), "no place for"),
    ("gemma4", "config", dict(output_proj_dims=9), r"output_proj.bias is \[12\], expected \[9\]"),
    ("gemma4", "config", dict(model_type="gemma4", audio_config=3), "audio_config is 3"),
    ("gemma4", "config", dict(model_type="gemma4_text"), "expected a speech encoder"),
    ("gemma3n", "preprocessor_config", dict(dither=0.1), "dither is 0.1"),
    ("gemma3n", "preprocessor_config", dict(per_bin_mean=[1.0]), r"per_bin_mean is \[1.0\]"),
    ("gemma3n", "preprocessor_config", dict(input_scale_factor=2.0), "input_scale_factor is 2.0"),
    ("gemma4", "preprocessor_config", dict(sampling_rate=8000), "sampling_rate is 8000"),
    ("gemma4", "preprocessor_config", dict(fft_length=256), "fft_size=256"),
    (
      "gemma4",
      "preprocessor_config",
      dict(feature_extractor_type="Gemma3nAudioFeatureExtractor"),
      'feature_extractor_type is "Gemma3nAudioFeatureExtractor"',
    ),
  ],
)
def test_what_is_not_supported_is_named(folders, tmp_path, kind, file, changes, says):
  copy = tmp_path / "copy"
  shutil.copytree(folders[kind], copy)
  change(copy / f"{file}.json", **changes)
  with pytest.raises(UserError, match=says) as raised:
    open_speech_encoder(copy)
  assert "\n" not in str(raised.value)


def test_a_model_whose_tower_has_no_weights(folders, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(folders["gemma4"], copy)
  (copy / "model.safetensors").unlink()
  weights = {"model.language_model.norm.weight": torch.ones(3)}
  torch.save(weights, copy / "pytorch_model.bin")
  with pytest.raises(UserError, match="holds 0 tensors whose names end in subsample_conv"):
    open_speech_encoder(copy)
