"""Training from cached frames is training from audio; a cache of something else is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.frame_cache import (
  FACTS,
  PARTS,
  WITNESS,
  CachedFrameBatches,
  create,
  open_frame_cache,
)
from slm_jax.training.frame_encoding import FrameEncoder
from slm_jax.training.frozen_frames import FrozenFrames, check_cacheable
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.scalars import read_scalars
from slm_jax.training.sharding import MeshConfig, make_mesh

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 4000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
)
STEPS = 3


def make_config(folder, bases, reduction: LengthReductionConfig, **changes) -> TrainConfig:
  adapter = AdapterConfig(
    num_layers=1,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    dropout_rate=0.1,
    length_reduction=reduction,
    ctc_embeddings=changes.pop("ctc_embeddings", False),
  )
  fields = {
    "model_dir": str(folder / "run"),
    "model": AdapterRecipe(**bases, adapter=adapter),
    "train_dataset": DATASET,
    "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="constant"),
    "total_steps": STEPS,
    "log_period": 1,
    "checkpoint_period": STEPS,
  }
  return TrainConfig(**(fields | changes))


def utterances(dataset: FakeDatasetConfig = DATASET, batches: int = STEPS) -> list[np.ndarray]:
  source, found = FakeBatches(dataset), []
  for _ in range(batches):
    arrays = next(source)
    found += [x[:n] for x, n in zip(arrays["audio"], arrays["audio_lengths"], strict=True)]
  return found


def fill(config: TrainConfig, folder: str, audio: list[np.ndarray], sizes=(2600, 4000)):
  frames = FrozenFrames(config.model, config.model.build(), make_mesh(MeshConfig()))
  place = create(folder, frames)
  encoder = FrameEncoder(frames, place, sample_lengths=sizes, batch_size=8)
  encoder.add(audio)
  encoder.close()
  return place, encoder.counts


def losses(config: TrainConfig) -> list[float]:
  return [line["loss"] for line in read_scalars(Path(config.model_dir) / "train.jsonl")]


REDUCTIONS = [
  (LengthReductionConfig(kind="stack", factor=2), True),
  (LengthReductionConfig(kind="ctc_blank", max_frames=0.3), False),
  (LengthReductionConfig(kind="random_drop", factor=2), False),
]


@pytest.mark.parametrize(
  "reduction, ctc_embeddings", REDUCTIONS, ids=[r.kind for r, _ in REDUCTIONS]
)
def test_the_loss_is_that_of_the_audio(tmp_path, tiny_bases, reduction, ctc_embeddings):
  config = make_config(tmp_path, tiny_bases, reduction, ctc_embeddings=ctc_embeddings)
  fill(config, str(tmp_path), utterances(batches=1))
  built = config.model.build()
  cache = open_frame_cache(str(tmp_path), config.model, built, make_mesh(MeshConfig()))
  heard = Batch.from_dict(next(FakeBatches(DATASET)))
  cached = Batch.from_dict(next(CachedFrameBatches(FakeBatches(DATASET), cache, built)))
  assert cached.audio is None
  params = nn.unbox(jax.jit(built.objective.init)(jax.random.key(0), heard))
  params |= jax.tree.map(jnp.asarray, {part: dict(tree) for part, tree in built.loaded.items()})

  @jax.jit
  def loss(params, batch):  # with dropout and random frames
    return built.objective.loss(params, batch, jax.random.key(1), train=True)[1]

  without = {part: tree for part, tree in params.items() if part != "speech_encoder"}
  expected, found = loss(params, heard), loss(without, cached)
  # What had no room was left out when the frames were made.
  assert found.keys() == expected.keys() - {"frames_lost"}
  for name in found:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tiny_bases):
  folder = tmp_path_factory.mktemp("cache")
  config = make_config(folder, tiny_bases, LengthReductionConfig(kind="mean", factor=2))
  place, _ = fill(config, str(folder / "frames"), utterances())
  return dataclasses.replace(config, frame_cache=str(folder / "frames")), place


def test_a_run_goes_on_with_and_without_the_cache(cache, tmp_path):
  config = dataclasses.replace(cache[0], model_dir=str(tmp_path / "run"), checkpoint_period=1)
  train(dataclasses.replace(config, total_steps=1), FakeBatches(DATASET))
  train(dataclasses.replace(config, total_steps=2, frame_cache=None), FakeBatches(DATASET))
  result = train(config, FakeBatches(DATASET))
  assert set(result.frozen) == {"language_model"}
  whole = dataclasses.replace(config, model_dir=str(tmp_path / "whole"), frame_cache=None)
  train(whole, FakeBatches(DATASET))
  np.testing.assert_allclose(losses(config), losses(whole), rtol=1e-5)


def test_held_out_losses_come_from_the_cache_too(cache, tmp_path):
  config = dataclasses.replace(
    cache[0], eval_dataset=DATASET, eval_steps=1, model_dir=str(tmp_path / "a"), total_steps=1
  )
  found = []
  for name, folder in (("cached", config.frame_cache), ("heard", None)):
    one = dataclasses.replace(config, model_dir=str(tmp_path / name), frame_cache=folder)
    train(one, FakeBatches(DATASET), held_out=FakeBatches(DATASET))
    found.append(json.loads((tmp_path / name / "eval.jsonl").read_text().split("\n")[0]))
  assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], rel=1e-5)


def test_utterances_are_encoded_once(cache):
  config, place = cache
  audio = utterances()
  assert fill(config, config.frame_cache, audio + audio)[1].encoded == 0
  extra = (audio[0] // 2).astype(np.int16)
  counts = fill(config, config.frame_cache, [audio[1], extra, extra, np.zeros(4001, np.int16)])[1]
  assert (counts.encoded, counts.known, counts.too_long) == (1, 2, 1)
  assert len(list((place / PARTS).glob("*.npy"))) == 2


def test_an_utterance_that_is_not_there_is_named(cache, tmp_path):
  other = dataclasses.replace(DATASET, seed=5)
  config = dataclasses.replace(cache[0], model_dir=str(tmp_path), train_dataset=other)
  with pytest.raises(UserError, match=r"no frames of example fake-0-0; run slm_jax cache again"):
    train(config, FakeBatches(other))


def test_another_encoder_or_reduction_is_another_cache(cache, tmp_path, tiny_bases):
  config, place = cache
  adapter = config.model.adapter
  stacked = dataclasses.replace(adapter, length_reduction=LengthReductionConfig(kind="stack"))
  wider = dataclasses.replace(adapter, mlp_dim=32)

  def key(model):
    return FrozenFrames(model, model.build(), make_mesh(MeshConfig())).key

  def replace(**changes):
    return dataclasses.replace(config.model, **changes)

  assert key(replace(adapter=wider)) == place.name  # nothing that frames depend on
  half = replace(frozen_speech_encoder_dtype="bfloat16")
  computed = replace(speech_encoder_dtype="bfloat16")
  keys = [key(m) for m in (replace(adapter=stacked), half, computed)]
  assert len({place.name, *keys}) == 4
  refused = dataclasses.replace(config, model=half, model_dir=str(tmp_path))
  with pytest.raises(UserError, match="those in .* have another speech_encoder; run slm_jax cache"):
    train(refused, FakeBatches(DATASET))
  refused = dataclasses.replace(refused, frame_cache=str(tmp_path / "empty"), model=config.model)
  with pytest.raises(UserError, match="holds no frames yet"):
    train(refused, FakeBatches(DATASET))


def test_frames_that_the_code_would_no_longer_make_are_refused(cache, tmp_path):
  config, place = cache
  shutil.copytree(place, tmp_path / "frames" / place.name)
  folder = tmp_path / "frames" / place.name
  then = np.load(folder / WITNESS)
  np.save(folder / WITNESS, np.roll(then, 1, axis=0))
  moved = dataclasses.replace(
    config, frame_cache=str(tmp_path / "frames"), model_dir=str(tmp_path / "run")
  )
  with pytest.raises(UserError, match="test sound differ by .* delete the folder"):
    train(moved, FakeBatches(DATASET))
  with pytest.raises(UserError, match="delete the folder"):
    fill(config, str(tmp_path / "frames"), [])
  assert json.loads((folder / FACTS).read_text())["format"] == 1


def test_what_cannot_be_cached_is_said(cache):
  config = cache[0]

  def opened(recipe):
    return FrozenFrames(recipe, recipe.build(), make_mesh(MeshConfig()))

  masked = dataclasses.replace(config.model, spec_augment=SpecAugmentConfig())
  with pytest.raises(UserError, match="spec_augment"):
    opened(masked)
  tuned = dataclasses.replace(config.model, trainable="(adapter|speech_encoder)/.*")
  with pytest.raises(UserError, match="trains speech_encoder/"):
    opened(tuned)
  with pytest.raises(UserError, match="only AdapterRecipe"):
    check_cacheable(object())
