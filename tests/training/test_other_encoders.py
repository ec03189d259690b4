"""An adapter is trained over an encoder of another family: the rest of the run does not know which."""

import dataclasses

import jax
import numpy as np
import pytest

from slm_jax.audio.whisper_log_mel import WhisperLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop.speech_encoder_folder import abstract_params, save_speech_encoder
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.speech_encoders.whisper import WhisperConfig
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import load_speech_language_model
from slm_jax.training.sharding import MeshConfig

WHISPER = WhisperConfig(
  num_layers=2, model_dim=16, num_heads=2, ffn_dim=24, log_mel=WhisperLogMelConfig(num_samples=16_000)
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_bases) -> TrainConfig:
  folder = tmp_path_factory.mktemp("whisper")
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0.05, 0.2, x.shape).astype(np.float32), abstract_params(WHISPER)
  )
  save_speech_encoder(folder / "encoder", WHISPER, params)
  reduction = LengthReductionConfig(kind="mean", factor=4)
  adapter = AdapterConfig(
    num_layers=1, num_heads=2, head_dim=8, mlp_dim=16, length_reduction=reduction
  )
  bases = {**tiny_bases, "speech_encoder": str(folder / "encoder")}
  dataset = FakeDatasetConfig(
    task_feature_lengths={"audio": 12_000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
  )
  return TrainConfig(
    model_dir=str(folder / "run"),
    model=AdapterRecipe(**bases, adapter=adapter),
    train_dataset=dataset,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="constant"),
    total_steps=2,
    log_period=1,
    checkpoint_period=2,
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
  )


def test_it_trains_saves_and_answers(config):
  result = train(config, FakeBatches(config.train_dataset))
  assert result.finished
  model, step = load_speech_language_model(
    config.model, config.model_dir, step=None, max_samples=48_000
  )
  assert step == 2 and model.max_samples == 16_000  # its window, whatever is asked for
  assert not model.has_ctc
  ids = model.generate(
    np.ones((1, 16_000), np.int16), np.array([16_000]), np.array([[5, 1]]), max_new_tokens=3
  ).ids
  assert ids.shape == (1, 3)


def test_audio_beyond_its_window_is_refused_before_anything_is_compiled(config, tmp_path):
  lengths = {**config.train_dataset.task_feature_lengths, "audio": 16_001}
  dataset = dataclasses.replace(config.train_dataset, task_feature_lengths=lengths)
  longer = dataclasses.replace(config, model_dir=str(tmp_path), train_dataset=dataset)
  with pytest.raises(UserError, match=r"16001: the speech encoder takes 16000"):
    train(longer, FakeBatches(dataset))


def test_int8_is_for_encoders_that_have_it(config):
  with pytest.raises(UserError, match="frozen_speech_encoder_dtype"):
    dataclasses.replace(config.model, frozen_dtype="int8").build()
  mixed = dataclasses.replace(
    config.model, frozen_dtype="int8", frozen_speech_encoder_dtype="bfloat16"
  )
  kinds = {str(np.dtype(x.dtype)) for x in jax.tree.leaves(mixed.build().loaded)}
  assert kinds == {"int8", "float32", "bfloat16"}
