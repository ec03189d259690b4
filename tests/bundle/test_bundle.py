"""Bundles: what was trained travels bitwise, fits its bases alone, and damage is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile

import slm_jax.bundle
from slm_jax.bundle.checksums import SUMS, sha256, write_sums
from slm_jax.bundle.manifest import CARD, CONFIG, FILES, WEIGHTS, read_manifest
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


@pytest.fixture(scope="module")
def loaded(bundle):
  return slm_jax.bundle.load(bundle)


@pytest.fixture
def copy(bundle, tmp_path):
  return shutil.copytree(bundle, tmp_path / "copy")


def sign(folder) -> None:
  """Makes the checksums fit again: damage that came before they were taken."""
  (folder / SUMS).unlink()
  write_sums(folder)


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


def test_files_arrays_and_lists_are_answered(loaded, tmp_path):
  samples = np.random.default_rng(0).integers(-3000, 3000, 3500).astype(np.int16)
  soundfile.write(tmp_path / "a.wav", samples, 16_000)
  text = loaded.generate(samples, "abdei", max_new_tokens=4)
  assert isinstance(text, str)
  assert loaded.transcribe(str(tmp_path / "a.wav"), max_new_tokens=4) == text
  answers = loaded.generate([samples, samples / 32768.0], max_new_tokens=4)
  assert answers == [text, text] == [answer.text for answer in answers]
  [(best, score)] = loaded.n_best(samples, "abdei", n=1, max_new_tokens=4)
  assert best == text and answers[0].scores == pytest.approx((score,), abs=1e-5)
  long = loaded.generate(np.concatenate([samples, samples]), max_new_tokens=4)
  assert len(long.scores) == 2
  assert isinstance(loaded.translate((samples, 8000), target="dei", max_new_tokens=4), str)


@pytest.mark.parametrize(
  ("audio", "message"),
  [
    (5.0, "expected one axis of samples"),
    (np.zeros((400, 2), np.int16), "expected one axis of samples"),
    (b"RIFF", "expected a file's path, an array"),
    ((np.ones(400, np.int16), "16k"), "expected a file's path, an array"),
    (np.zeros(0, np.int16), "holds no audio samples"),
    ("/gone.wav", "/gone.wav"),
  ],
)
def test_what_is_no_audio_is_named(loaded, audio, message):
  with pytest.raises(UserError, match=message):
    loaded.generate(audio)


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
  sums = (copy / SUMS).read_text()
  for name in ("../outside", str(tmp_path / "outside"), "a/../../outside", ".."):
    (copy / SUMS).write_text(f"{sums}{sha256(tmp_path / 'outside')}  {name}\n")
    with pytest.raises(UserError, match=f"{SUMS} is damaged"):
      slm_jax.bundle.load(copy)
  (copy / SUMS).write_text(f"{sums}{'0' * 64}  more.safetensors\n")
  with pytest.raises(UserError, match="more.safetensors is missing"):
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
    (lambda t: t.update({KERNEL: t[KERNEL].astype(np.float16)}), "is float16, expected one of"),
    (lambda t: t.update({"../adapter": np.ones(2, np.float32)}), "'../adapter', which is no"),
    (lambda t: t.update({f"{KERNEL}.x": t[KERNEL]}), "and adapter/projection/kernel as a tensor"),
    (lambda t: t.update({KERNEL: t[KERNEL] * np.nan}), "NaN or infinite"),
  ],
  ids=["missing", "none", "surplus", "shape", "type", "half", "path", "below", "nan"],
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
    ({"max_samples": "many"}, "max_samples is 'many', expected int"),
    ({"adapter": 5}, "adapter is 5, expected AdapterConfig"),
    ({"max_samples": True}, "max_samples is True, expected int"),
    ({"instructions": {"default": 5}}, "expected texts by name"),
    ({"instructions": ["default"]}, "expected texts by name"),
  ],
)
def test_a_config_of_another_kind_is_refused(copy, change, message):
  record = json.loads((copy / CONFIG).read_text())
  (copy / CONFIG).write_text(json.dumps(record | change))
  sign(copy)
  with pytest.raises(UserError, match=message):
    slm_jax.bundle.load(copy)


def test_the_card_is_what_hubs_read(trained, bundle, tmp_path):
  card = huggingface_hub.ModelCard.load(bundle / CARD)
  assert card.data.library_name == "slm_jax" and card.data.eval_results is None
  # A hub takes ids, and refuses paths.
  bases = [trained.model.speech_encoder, trained.model.language_model]
  assert card.data.base_model == [Path(base).name for base in bases]
  manifest = read_manifest(bundle)
  assert manifest.language_model.fingerprint[:16] in card.text and "Patent" in card.text
  scored = shutil.copytree(trained.model_dir, tmp_path / "scored")
  (scored / "inference_eval").mkdir()
  records = [
    {"task": "asr", "step": step, "scores": {"slm": {"wer": {"value": 4.25 * step}}}}
    for step in (1, 2)
  ]
  lines = "".join(f"{json.dumps(record)}\n" for record in records)
  (scored / "inference_eval" / "asr-metrics.jsonl").write_text(lines)
  folder = export_bundle(
    trained.model, checkpoint_folder(scored), tmp_path / "bundle", max_samples=4000,
    instructions={}, licence="Apache-2.0", base_models=["google/mt5-small"],
  )  # fmt: skip
  card = huggingface_hub.ModelCard.load(folder / CARD)
  assert card.data.license == "apache-2.0" and card.data.base_model == ["google/mt5-small"]
  [result] = card.data.eval_results
  assert (result.dataset_name, result.metric_type, result.metric_value) == ("asr", "wer", 8.5)
  assert "| asr | wer | 8.5 |" in card.text


def test_a_folder_that_is_taken_is_left_alone(trained, bundle):
  before = {path.name: path.read_bytes() for path in bundle.iterdir()}
  checkpoint = checkpoint_folder(trained.model_dir)
  for output in ("/dev/null/x", "/proc/x"):
    with pytest.raises(UserError, match=f"--output={output} cannot be made"):
      export_bundle(trained.model, checkpoint, output, max_samples=4000, instructions={})
  with pytest.raises(UserError, match="is not empty; choose another folder"):
    export_bundle(trained.model, checkpoint, bundle, max_samples=4000, instructions={})
  assert before == {path.name: path.read_bytes() for path in bundle.iterdir()}
  shape = dataclasses.replace(
    trained.model, language_model=load_language_model(trained.model.language_model).config
  )
  with pytest.raises(UserError, match="language_model is a shape; a bundle needs the folder"):
    export_bundle(shape, checkpoint, bundle / "new", max_samples=4000, instructions={})
