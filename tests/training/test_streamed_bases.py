"""A run takes its bases straight from their files, whatever their format, one shard at a time."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.interop import open_language_model
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training import parameters
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import load_speech_language_model
from slm_jax.training.sharding import MeshConfig

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 4000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
)


def run_config(folder, bases: dict) -> TrainConfig:
  adapter = AdapterConfig(
    num_layers=1,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    length_reduction=LengthReductionConfig(kind="stack", factor=2),
  )
  return TrainConfig(
    model_dir=str(folder),
    model=AdapterRecipe(**bases, adapter=adapter),
    train_dataset=DATASET,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="constant"),
    total_steps=2,
    log_period=1,
    checkpoint_period=2,
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
  )


@pytest.fixture(scope="module")
def t5x_bases(tiny_bases, tmp_path_factory) -> dict[str, str]:
  """The tiny bases, with the LM as a T5X checkpoint."""
  folder = tmp_path_factory.mktemp("t5x")
  lm = open_language_model(tiny_bases["language_model"])
  path = save_t5x_checkpoint(folder, lm.config, lm.params, 100)
  shutil.copy(lm.tokenizer_path, folder)
  return {**tiny_bases, "language_model": str(path)}


def test_a_t5x_checkpoint_is_the_base_that_a_hugging_face_folder_is(
  tmp_path, tiny_bases, t5x_bases, monkeypatch
):
  reads, read = [], StoredParameter.read

  def reading(self, index=None):
    reads.append((self.size, read(self, index)))
    return reads[-1][1]

  monkeypatch.setattr(StoredParameter, "read", reading)
  result = train(run_config(tmp_path / "t5x", t5x_bases), FakeBatches(DATASET))
  # Nothing that the mesh splits was ever whole on the host.
  flat = parameters.flatten(result.frozen)
  split = {x.size for x in flat.values() if not x.sharding.is_fully_replicated}
  replicated = {x.size for x in flat.values() if x.sharding.is_fully_replicated}
  assert split - replicated
  assert not any(part.size == size for size, part in reads if size in split - replicated)
  expected = parameters.flatten(run_config(tmp_path, tiny_bases).model.build().loaded)
  for path, leaf in flat.items():
    np.testing.assert_array_equal(jax.device_get(leaf), expected[path], err_msg=path)

  # The fingerprint is that of the weights: the run goes on, and answers, over the other format.
  config = run_config(tmp_path / "t5x", tiny_bases)
  model, step = load_speech_language_model(
    config.model, config.model_dir, step=None, max_samples=4000
  )
  assert step == 2 and model.tokenizer.vocab_size() == 64


def test_a_base_without_a_tokenizer_answers_nothing(tmp_path, t5x_bases):
  folder = tmp_path / "checkpoint_100"
  shutil.copytree(t5x_bases["language_model"], folder)
  bases = {**t5x_bases, "language_model": str(folder)}
  config = run_config(tmp_path / "run", bases)
  train(config, FakeBatches(DATASET))
  with pytest.raises(UserError, match="checkpoint_100 has no spiece.model"):
    load_speech_language_model(config.model, config.model_dir, step=None, max_samples=4000)


def test_a_damaged_base_is_named_before_anything_is_compiled(tmp_path, tiny_bases):
  from safetensors.numpy import load_file, save_file

  folder = tmp_path / "lm"
  shutil.copytree(tiny_bases["language_model"], folder)
  tensors = load_file(folder / "model.safetensors")
  tensors["shared.weight"][0, 0] = np.nan
  save_file(tensors, folder / "model.safetensors")
  bases = {**tiny_bases, "language_model": str(folder)}
  with pytest.raises(UserError, match="model.safetensors: shared.weight holds values .* NaN"):
    train(run_config(tmp_path / "run", bases), FakeBatches(DATASET))


def test_an_adapter_is_trained_over_int8_bases(tmp_path, tiny_bases):
  full = run_config(tmp_path / "float", tiny_bases)
  rounded = run_config(tmp_path / "int8", tiny_bases)
  rounded = dataclasses.replace(
    rounded, model=dataclasses.replace(rounded.model, frozen_dtype="int8")
  )
  results = [train(config, FakeBatches(DATASET)) for config in (full, rounded)]
  kinds = {str(leaf.dtype) for leaf in parameters.flatten(results[1].frozen).values()}
  assert kinds == {"int8", "float32"}
  losses = [
    [
      json.loads(line)["loss"]
      for line in (tmp_path / name / "train.jsonl").read_text().splitlines()
    ]
    for name in ("float", "int8")
  ]
  np.testing.assert_allclose(*losses, rtol=0.02)
  assert losses[0] != losses[1]
  # A run goes on over the base it began with.
  other = dataclasses.replace(full, model_dir=str(tmp_path / "int8"), total_steps=4)
  with pytest.raises(UserError, match="frozen_dtype='int8'"):
    train(other, FakeBatches(DATASET))
  model, _ = load_speech_language_model(
    rounded.model, rounded.model_dir, step=None, max_samples=4000
  )
  audio = np.zeros((1, 4000), np.int16)
  ids = model.generate(audio, np.array([4000]), np.array([[5, 1]]), max_new_tokens=3).ids
  assert ids.shape == (1, 3)

  trained = dataclasses.replace(rounded.model, trainable="(adapter|language_model)/.*")
  with pytest.raises(UserError, match="int8"):
    train(dataclasses.replace(rounded, model=trained), FakeBatches(DATASET))
