"""Bundles: what was trained travels bitwise, fits its bases alone, and damage is named."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile
import yaml

import slm_jax.bundle
from slm_jax.bundle.manifest import CARD, CONFIG, FILES, SUMS, WEIGHTS, read_manifest, sha256
from slm_jax.bundle.writing import export_bundle
from slm_jax.errors import UserError
from slm_jax.interop import load_language_model
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training import parameters
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import checkpoint_folder, load_speech_language_model, restore_trained

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 4000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
)
INSTRUCTIONS = {"default": "abdei", "transcribe": "abdei", "translate": "ab {target}"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bases):
  folder = tmp_path_factory.mktemp("trained")
  adapter = AdapterConfig(
    num_layers=1,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    length_reduction=LengthReductionConfig(kind="stack", factor=2),
  )
  config = TrainConfig(
    model_dir=str(folder / "run"),
    model=AdapterRecipe(**tiny_bases, adapter=adapter),
    train_dataset=DATASET,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="constant"),
    total_steps=2,
  )
  train(config, FakeBatches(DATASET))
  return config


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
  output = tmp_path_factory.mktemp("bundles") / "bundle"
  checkpoint = checkpoint_folder(trained.model_dir)
  return export_bundle(
    trained.model, checkpoint, output, max_samples=4000, instructions=INSTRUCTIONS
  )


@pytest.fixture
def copy(bundle, tmp_path):
  return shutil.copytree(bundle, tmp_path / "copy")


def sign(folder) -> None:
  """Makes the checksums fit again: damage that came before they were taken."""
  (folder / SUMS).write_text("".join(f"{sha256(folder / n)}  {n}\n" for n in FILES))


def test_what_was_trained_is_there_bitwise(trained, bundle):
  model = slm_jax.bundle.load(bundle).model
  checkpoint, _ = load_speech_language_model(
    trained.model, trained.model_dir, step=None, max_samples=4000
  )
  assert model.model == checkpoint.model
  found, expected = (parameters.flatten(jax.device_get(m.params)) for m in (model, checkpoint))
  assert found.keys() == expected.keys()
  for path in expected:
    np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
  audio = next(FakeBatches(DATASET))["audio"][:2]
  arguments = (audio, np.full(2, 4000, np.int32), np.ones((2, 4), np.int32))
  answers = [m.generate(*arguments, max_new_tokens=5) for m in (model, checkpoint)]
  np.testing.assert_array_equal(answers[0].ids, answers[1].ids)
  np.testing.assert_array_equal(answers[0].scores, answers[1].scores)


def test_only_the_adapter_travels_and_other_programs_read_it(trained, bundle):
  assert {path.name for path in bundle.iterdir()} == {*FILES, SUMS}
  flat = parameters.flatten(restore_trained(checkpoint_folder(trained.model_dir)))
  read = safetensors.numpy.load_file(bundle / WEIGHTS)
  assert {name.replace(".", "/") for name in read} == set(flat)
  for name, tensor in read.items():
    np.testing.assert_array_equal(tensor, flat[name.replace(".", "/")])


def test_files_arrays_and_lists_are_answered(bundle, tmp_path):
  loaded = slm_jax.bundle.load(bundle)
  samples = np.random.default_rng(0).integers(-3000, 3000, 3500).astype(np.int16)
  soundfile.write(tmp_path / "a.wav", samples, 16_000)
  text = loaded.generate(samples, "abdei", max_new_tokens=4)
  assert isinstance(text, str)
  assert loaded.transcribe(str(tmp_path / "a.wav"), max_new_tokens=4) == text
  answers = loaded.generate([samples, samples / 32768.0], max_new_tokens=4)
  assert answers == [text, text]
  assert isinstance(loaded.translate((samples, 8000), target="dei", max_new_tokens=4), str)


def test_an_instruction_that_was_not_exported_is_asked_for(copy):
  record = json.loads((copy / CONFIG).read_text())
  (copy / CONFIG).write_text(json.dumps(record | {"instructions": {}}))
  sign(copy)
  with pytest.raises(UserError, match=r"has no instruction 'transcribe', only \[\]"):
    slm_jax.bundle.load(copy).transcribe(np.ones(3000, np.int16))


def test_other_bases_are_refused_with_both_fingerprints(bundle, tiny_bases, tmp_path):
  lm = load_language_model(tiny_bases["language_model"])
  params = jax.tree.map(np.array, lm.params)
  params["token_embedder"]["embedding"][3, 3] += 1e-3
  save_language_model(
    tmp_path / "lm", lm.config, params, tiny_bases["language_model"] + "/spiece.model"
  )
  expected = read_manifest(bundle).language_model.fingerprint
  with pytest.raises(UserError, match=f"another language_model: its fingerprint is {expected}"):
    slm_jax.bundle.load(bundle, language_model=str(tmp_path / "lm"))
  with pytest.raises(UserError, match=f"another language_model: its fingerprint is {expected}"):
    slm_jax.bundle.load(bundle, language_model=str(tmp_path / "lm"), frozen_dtype="bfloat16")
  with pytest.raises(UserError, match="language_model: /gone does not exist"):
    slm_jax.bundle.load(bundle, language_model="/gone")


def test_bases_may_be_stored_in_another_type(bundle):
  model = slm_jax.bundle.load(bundle, frozen_dtype="bfloat16").model
  assert model.params["language_model"]["token_embedder"]["embedding"].dtype == "bfloat16"
  assert model.params["adapter"]["projection"]["kernel"].dtype == np.float32


@pytest.mark.parametrize("name", [*FILES, SUMS])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named(copy, name, damage):
  content = bytearray((copy / name).read_bytes())
  if damage == "gone":
    (copy / name).unlink()
  elif damage == "cut":
    (copy / name).write_bytes(content[: len(content) // 2])
  else:
    content[len(content) // 2] ^= 4
    (copy / name).write_bytes(content)
  with pytest.raises(UserError, match=str(copy)):
    slm_jax.bundle.load(copy)


def test_names_outside_of_the_folder_are_refused(copy, tmp_path):
  (tmp_path / "outside").write_text("x")
  (copy / SUMS).write_text(f"{sha256(tmp_path / 'outside')}  ../outside\n")
  with pytest.raises(UserError, match=f"{SUMS} is damaged"):
    slm_jax.bundle.load(copy)


def with_tensors(folder, change) -> None:
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / WEIGHTS)
  sign(folder)


KERNEL = "adapter.projection.kernel"


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.pop(KERNEL), "has no adapter/projection/kernel"),
    (lambda t: t.clear(), "has no adapter/"),
    (lambda t: t.update(other=np.ones(2, np.float32)), "has other, for which"),
    (lambda t: t.update({KERNEL: t[KERNEL].T.copy()}), "adapter/projection/kernel has the shape"),
    (lambda t: t.update({KERNEL: t[KERNEL].astype(np.int32)}), "is int32, expected one of"),
    (lambda t: t.update({KERNEL: t[KERNEL] * np.nan}), "NaN or infinite"),
  ],
  ids=["missing", "none", "surplus", "shape", "type", "nan"],
)
def test_weights_that_are_not_the_configs_are_refused(copy, change, message):
  with_tensors(copy, change)
  with pytest.raises(UserError, match=message):
    slm_jax.bundle.load(copy)


def test_an_implausible_header_is_refused(copy):
  (copy / WEIGHTS).write_bytes(np.uint64(2**60).tobytes() + b"{}")
  sign(copy)
  with pytest.raises(UserError, match="implausibly large"):
    slm_jax.bundle.load(copy)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"format_version": 2}, "format_version is 2, this version of slm_jax reads 1"),
    ({"format": "peft"}, "format is 'peft'"),
    ({"surplus": 1}, "does not describe a bundle"),
    ({"max_samples": 0}, "expected at least 1"),
  ],
)
def test_a_config_of_another_kind_is_refused(copy, change, message):
  record = json.loads((copy / CONFIG).read_text())
  (copy / CONFIG).write_text(json.dumps(record | change))
  sign(copy)
  with pytest.raises(UserError, match=message):
    slm_jax.bundle.load(copy)


def test_the_card_is_what_hubs_read(trained, bundle):
  _, front, text = (bundle / CARD).read_text().split("---\n", 2)
  front = yaml.safe_load(front)
  assert front["library_name"] == "slm_jax"
  assert front["base_model"] == [trained.model.speech_encoder, trained.model.language_model]
  manifest = read_manifest(bundle)
  assert manifest.language_model.fingerprint[:16] in text and "Patent" in text


def test_a_folder_that_is_taken_is_left_alone(trained, bundle):
  before = {path.name: path.read_bytes() for path in bundle.iterdir()}
  checkpoint = checkpoint_folder(trained.model_dir)
  with pytest.raises(UserError, match="is not empty; choose another folder"):
    export_bundle(trained.model, checkpoint, bundle, max_samples=4000, instructions={})
  assert before == {path.name: path.read_bytes() for path in bundle.iterdir()}
  shape = dataclasses.replace(
    trained.model, language_model=load_language_model(trained.model.language_model).config
  )
  with pytest.raises(UserError, match="language_model is a shape; a bundle needs the folder"):
    export_bundle(shape, checkpoint, bundle / "new", max_samples=4000, instructions={})
