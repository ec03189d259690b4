"""Exports with the bases: bitwise the same model, which other programs read and run."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import torch
import transformers

import slm_jax.bundle
from slm_jax.batch import Batch
from slm_jax.bundle.checksums import SUMS, write_sums
from slm_jax.bundle.merged import export_merged
from slm_jax.bundle.savedmodel import export_savedmodel
from slm_jax.bundle.stablehlo import ExportedShapes, export_stablehlo
from slm_jax.bundle.towers import export_t5x, export_transformers, has_transformers_class
from slm_jax.bundle.writing import export_bundle
from slm_jax.cli.main import main
from slm_jax.errors import UserError
from slm_jax.interop import load_language_model, load_speech_encoder
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training import parameters
from slm_jax.training.config import FakeDatasetConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.recipes import AdapterRecipe
from tests.untrained_runs import save_untrained

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 8000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
)
GIVEN = {"max_samples": 8000, "instructions": {"default": "abdei"}}
NOISE = np.random.default_rng(0).integers(-3000, 3000, 7000).astype(np.int16)


def published_encoder(folder: Path) -> str:
  """A tiny w2v-BERT as Transformers saves it."""
  torch.manual_seed(0)
  config = transformers.Wav2Vec2BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    feature_projection_input_dim=160, conv_depthwise_kernel_size=5,
    left_max_position_embeddings=6, right_max_position_embeddings=2,
  )  # fmt: skip
  model = transformers.Wav2Vec2BertModel(config).eval()
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter.data, 0.05, 0.3)
  model.save_pretrained(folder)
  transformers.SeamlessM4TFeatureExtractor(padding_value=1.0).save_pretrained(folder)
  return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bases):
  """(recipe over a published encoder, checkpoint of a run of it)."""
  folder = tmp_path_factory.mktemp("formats")
  recipe = AdapterRecipe(
    speech_encoder=published_encoder(folder / "w2v_bert"),
    language_model=tiny_bases["language_model"],
    adapter=AdapterConfig(
      num_layers=2,
      num_heads=2,
      head_dim=8,
      mlp_dim=16,
      length_reduction=LengthReductionConfig(kind="stack", factor=2),
    ),
  )
  return recipe, save_untrained(recipe, folder / "run", DATASET)


@pytest.fixture(scope="module")
def loaded(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle") / "bundle"
  return slm_jax.bundle.load(export_bundle(*run, folder, **GIVEN))


def flat(model) -> dict:
  return parameters.flatten(jax.device_get(model.params))


def test_merged_is_bitwise_the_bundle_over_its_bases(run, loaded, tmp_path):
  folder = export_merged(*run, tmp_path / "merged", **GIVEN, max_shard_bytes=20_000)
  assert len(list(folder.glob("model-*.safetensors"))) > 1
  merged = slm_jax.bundle.load(folder)
  assert merged.model.model == loaded.model.model
  found, expected = flat(merged.model), flat(loaded.model)
  assert found.keys() == expected.keys()
  for path in expected:
    assert found[path].dtype == expected[path].dtype
    np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
  answers = [m.generate([NOISE, NOISE[:3000]], max_new_tokens=6) for m in (merged, loaded)]
  assert answers[0] == answers[1]
  with pytest.raises(UserError, match="holds its bases"):
    slm_jax.bundle.load(folder, speech_encoder="elsewhere")
  with pytest.raises(UserError, match="exists and is not empty"):
    export_merged(*run, folder, **GIVEN)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"format_version": 9}, "version 9; expected 'slm_jax.merged', 1"),
    ({"adapter": {"num_heads": 2}}, "does not describe a merged model"),
    ({"speech_encoder": {"family": "nobody"}}, "does not describe a merged model"),
    ({"speech_first": None, "max_samples": "many"}, "does not describe a merged model"),
  ],
)
def test_a_damaged_merged_folder_is_refused(run, tmp_path, change, message):
  folder = export_merged(*run, tmp_path / "merged", **GIVEN)
  record = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(record | change))
  (folder / SUMS).unlink()
  write_sums(folder)
  with pytest.raises(UserError, match=message):
    slm_jax.bundle.load(folder)


def test_merged_weights_that_are_cut_or_missing_are_named(run, tmp_path):
  folder = export_merged(*run, tmp_path / "merged", **GIVEN)
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  content = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(content[:-100])
  with pytest.raises(UserError, match="model.safetensors is damaged"):
    slm_jax.bundle.load(folder)
  flipped = bytearray(content)
  flipped[-100] ^= 4
  (folder / "model.safetensors").write_bytes(flipped)
  with pytest.raises(UserError, match="model.safetensors is damaged"):
    slm_jax.bundle.load(folder)
  (folder / SUMS).write_text((folder / SUMS).read_text().replace("  model.", "  other."))
  with pytest.raises(UserError, match="model.safetensors is not named in SHA256SUMS"):
    slm_jax.bundle.load(folder)
  del weights["adapter.projection.kernel"]
  safetensors.numpy.save_file(weights, folder / "model.safetensors")
  (folder / SUMS).unlink()
  write_sums(folder)
  with pytest.raises(UserError, match="adapter.projection.kernel"):
    slm_jax.bundle.load(folder)


def test_stablehlo_runs_without_the_package_and_gives_the_same_ids(run, loaded, tmp_path):
  shapes = ExportedShapes(batch_size=2, prompt_length=8, max_new_tokens=10, tokens_a_call=3)
  folder = export_stablehlo(
    loaded.model, tmp_path / "programs", shapes, instructions=loaded.instructions
  )
  audio = np.zeros((2, 8000), np.int16)
  audio[0, :7000], audio[1, :3000] = NOISE, NOISE[:3000]
  prompt = np.array([[5, 9, 1, 0, 0, 0, 0, 0], [7, 1, 0, 0, 0, 0, 0, 0]], np.int32)
  lengths = np.array([7000, 3000], np.int32)
  np.savez(tmp_path / "inputs.npz", audio=audio, lengths=lengths, prompt=prompt)
  code = f"""
import runpy, sys
import numpy as np
sys.modules["slm_jax"] = None
inputs = dict(np.load({str(tmp_path / "inputs.npz")!r}))
ids = runpy.run_path({str(folder / "run.py")!r})["generate"](**inputs)
np.save({str(tmp_path / "ids.npy")!r}, ids)
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=240)
  expected = loaded.model.generate(audio, lengths, prompt, max_new_tokens=10).ids
  np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), expected)
  manifest = json.loads((folder / "manifest.json").read_text())
  assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
  assert [x["shape"] for x in manifest["programs"]["encode"]["inputs"]] == [[2, 8000], [2], [2, 8]]


def test_tensorflow_serves_the_same_ids(loaded, tmp_path):
  shapes = ExportedShapes(batch_size=2, prompt_length=4, max_new_tokens=6)
  folder = export_savedmodel(loaded.model, tmp_path / "saved", shapes)
  audio = np.zeros((2, 8000), np.int16)
  audio[0, :7000], audio[1, :3000] = NOISE, NOISE[:3000]
  inputs = {
    "audio": audio,
    "lengths": np.array([7000, 3000], np.int32),
    "prompt": np.array([[5, 9, 1, 0], [7, 1, 0, 0]], np.int32),
  }
  serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
  found = serve(**{name: tf.constant(value) for name, value in inputs.items()})["ids"]
  expected = loaded.model.generate(*inputs.values(), max_new_tokens=6).ids
  np.testing.assert_array_equal(found, expected)


def torch_reference():
  path = Path(__file__).parents[2] / "docs" / "reference" / "torch_slm.py"
  spec = importlib.util.spec_from_file_location("torch_slm", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.TorchSLM


def test_transformers_loads_the_towers_and_torch_gives_the_same_logits(run, loaded, tmp_path):
  folder = export_transformers(*run, tmp_path / "hf")
  reference = torch_reference()(str(folder), num_heads=2, head_dim=8, factor=2)
  batch = next(FakeBatches(DATASET))
  lengths, targets = batch["audio_lengths"], batch["decoder_target_tokens"]
  weights = batch["decoder_loss_weights"] > 0
  prompt = np.tile(np.array([5, 9, 11, 1], np.int32), (8, 1))
  recordings = [row[:n] for row, n in zip(batch["audio"], lengths, strict=True)]
  rows = [row[real].tolist() for row, real in zip(targets, weights, strict=True)]
  theirs = reference(recordings, prompt[0].tolist(), rows)
  batch = Batch.from_dict(batch | {"encoder_input_tokens": prompt})
  ours = loaded.model.model.apply({"params": loaded.model.params}, batch)
  for row, real, expected in zip(np.asarray(ours), weights, theirs, strict=True):
    np.testing.assert_allclose(row[real], expected.numpy(), atol=1e-4)


def test_other_bases_than_trainings_are_refused(run, tiny_bases, tmp_path):
  recipe = dataclasses.replace(run[0], speech_encoder=tiny_bases["speech_encoder"])
  for export in (export_merged, export_t5x, export_transformers):
    given = GIVEN if export is export_merged else {}
    with pytest.raises(UserError, match="trained over another speech_encoder: its fingerprint"):
      export(recipe, run[1], tmp_path / "x", **given)
  assert not list(tmp_path.iterdir())


def test_an_encoder_that_transformers_has_no_class_for_is_copied(run, tiny_bases, tmp_path):
  recipe = dataclasses.replace(run[0], speech_encoder=tiny_bases["speech_encoder"])
  assert has_transformers_class(run[0]) and not has_transformers_class(recipe)
  folder = export_transformers(
    recipe, save_untrained(recipe, tmp_path / "run", DATASET), tmp_path / "hf"
  )
  load_speech_encoder(folder / "speech_encoder")
  transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "language_model")


def test_quantised_bases_are_refused(run, tmp_path):
  for export in (export_merged, export_t5x, export_transformers):
    given = GIVEN if export is export_merged else {}
    with pytest.raises(UserError, match="frozen_dtype is int8"):
      export(dataclasses.replace(run[0], frozen_dtype="int8"), run[1], tmp_path / "x", **given)


def test_t5x_checkpoints_come_back_bitwise(run, loaded, tmp_path):
  folder = export_t5x(*run, tmp_path / "t5x")
  config = loaded.model.model.config.language_model
  found = load_language_model(
    folder / "language_model" / "checkpoint_1",
    tokenizer=Path(run[0].language_model) / "spiece.model",
  )
  assert found.config.num_encoder_layers == config.num_encoder_layers
  expected = parameters.flatten(jax.device_get(loaded.model.params["language_model"]))
  for path, leaf in parameters.flatten(found.params).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  assert (folder / "adapter" / "checkpoint_1" / "checkpoint").is_file()
  assert (folder / "speech_encoder" / "checkpoint_1" / "checkpoint").is_file()


def test_the_best_answers_and_their_scores(loaded):
  found = loaded.n_best(NOISE, n=3, max_new_tokens=6)
  scores = [score for _, score in found]
  assert len(found) == 3 and scores == sorted(scores, reverse=True)
  assert found[0][0] == loaded.generate(NOISE, max_new_tokens=6, num_beams=3, batch_size=1)
  assert loaded.n_best([NOISE, NOISE], n=3, max_new_tokens=6) == [found, found]
  with pytest.raises(UserError, match="n_best takes 8000"):
    loaded.n_best(np.ones(9000, np.int16), n=2)
  with pytest.raises(UserError, match="n=3, num_beams=2"):
    loaded.n_best(NOISE, n=3, num_beams=2)


def test_shapes_of_programs_are_checked(capsys):
  with pytest.raises(ValueError, match="batch_size=0"):
    ExportedShapes(batch_size=0)
  assert main(["export", "--checkpoint=x", "--output=y", "--format=pdf"]) == 2
  assert "invalid choice: 'pdf'" in capsys.readouterr().err
