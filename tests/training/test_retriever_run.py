"""A retriever through the loop: the encoder stays out of it, runs resume, and what was learnt is found again."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from slm_jax import retrieval
from slm_jax.audio.files import split_audio
from slm_jax.cli.main import main
from slm_jax.entities import encode_entities
from slm_jax.errors import UserError
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.retriever import RetrieverConfig, soft_maximum
from slm_jax.retrieval import load_retriever
from slm_jax.training import parameters
from slm_jax.training.config import FakeDatasetConfig, PretrainConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.frame_cache import CachedFrameBatches, create, open_frame_cache
from slm_jax.training.frame_encoding import FrameEncoder
from slm_jax.training.frozen_frames import FrozenFrames
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import RetrieverRecipe
from slm_jax.training.scalars import read_scalars
from slm_jax.training.sharding import MeshConfig, make_mesh

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 4000, "inputs": 1, "targets": 8}, batch_size=8, vocab_size=259
)
NAMES = ("Anna", "Bo", "Zoë", "Cy", "Dorit", "Emil", "Fay")


def make_config(folder: Path, bases: dict, **changes) -> TrainConfig:
  recipe = RetrieverRecipe(
    speech_encoder=bases["speech_encoder"],
    retriever=RetrieverConfig(
      towers=AdapterConfig(
        num_layers=1,
        num_heads=2,
        head_dim=4,
        mlp_dim=16,
        dropout_rate=0.1,
        length_reduction=LengthReductionConfig(kind="drop", factor=1),
      ),
      width=16,
      embedding_dim=8,
      max_entities=2,
      max_entity_bytes=8,
    ),
  )
  fields = {
    "model_dir": str(folder),
    "model": recipe,
    "train_dataset": DATASET,
    "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=1, decay="constant"),
    "total_steps": 4,
    "log_period": 1,
    "checkpoint_period": 2,
  }
  return TrainConfig(**(fields | changes))


def losses(folder: Path) -> list[float]:
  return [line["loss"] for line in read_scalars(folder / "train.jsonl")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bases):
  """(config, result) of a run that was stopped and resumed; its config.gin is one that loads."""
  folder = tmp_path_factory.mktemp("retriever") / "run"
  config = make_config(folder, tiny_bases)
  gin = f"""
    train.model_dir = '{folder}'
    train.model = @RetrieverRecipe()
    train.train_dataset = @FakeDatasetConfig()
    train.optimizer = @OptimizerConfig()
    train.total_steps = 4
    FakeDatasetConfig.task_feature_lengths = {DATASET.task_feature_lengths}
    FakeDatasetConfig.batch_size = 8
    FakeDatasetConfig.vocab_size = 259
    RetrieverRecipe.speech_encoder = '{tiny_bases["speech_encoder"]}'
    RetrieverRecipe.retriever = @RetrieverConfig()
    RetrieverConfig.towers = @AdapterConfig()
    RetrieverConfig.width = 16
    RetrieverConfig.embedding_dim = 8
    RetrieverConfig.max_entities = 2
    RetrieverConfig.max_entity_bytes = 8
    AdapterConfig.num_layers = 1
    AdapterConfig.num_heads = 2
    AdapterConfig.head_dim = 4
    AdapterConfig.mlp_dim = 16
    AdapterConfig.length_reduction = @LengthReductionConfig()
    LengthReductionConfig.factor = 1
  """.replace("\n    ", "\n")
  train(dataclasses.replace(config, total_steps=2), FakeBatches(DATASET), run_text=gin)
  return config, train(config, FakeBatches(DATASET), run_text=gin)


@pytest.fixture(scope="module")
def retriever(run):
  config, _ = run
  return load_retriever(config.model, config.model_dir, max_samples=4000, batch_size=2)[0]


def test_the_encoder_is_in_neither_gradient_nor_checkpoint_and_stays_as_it_was(run):
  config, result = run
  assert set(result.state.params) == {"retriever"}
  moments = sum(x.size for x in jax.tree.leaves(result.state.opt_state) if x.ndim)
  assert moments == 2 * parameters.count(result.state.params)
  before = parameters.flatten(config.model.build().loaded)
  after = parameters.flatten(jax.device_get(result.frozen))
  assert before.keys() == after.keys()
  for path, leaf in before.items():
    np.testing.assert_array_equal(leaf, after[path])


def test_resume_on_a_mesh_and_cached_frames_have_the_losses_of_one_run(run, tmp_path, tiny_bases):
  config, _ = run
  mesh = MeshConfig(data=2, fsdp=2, tensor=2)
  train(make_config(tmp_path / "mesh", tiny_bases, mesh=mesh), FakeBatches(DATASET))
  expected = losses(Path(config.model_dir))
  # Every utterance sees the names of the whole batch, wherever they are.
  np.testing.assert_allclose(losses(tmp_path / "mesh"), expected, rtol=1e-4)

  mesh = make_mesh(MeshConfig())
  frames = FrozenFrames(config.model, config.model.build(), mesh)
  place = create(str(tmp_path / "frames"), frames)
  encoder = FrameEncoder(frames, place, sample_lengths=(4000,), batch_size=8)
  batches = FakeBatches(DATASET)
  for arrays in (next(batches) for _ in range(4)):
    encoder.add(x[:n] for x, n in zip(arrays["audio"], arrays["audio_lengths"], strict=True))
  encoder.close()
  cached = make_config(tmp_path / "cached", tiny_bases, frame_cache=str(tmp_path / "frames"))
  train(cached, FakeBatches(DATASET))
  np.testing.assert_allclose(losses(tmp_path / "cached"), expected, rtol=1e-4)
  cache = open_frame_cache(cached.frame_cache, config.model, config.model.build(), mesh)
  assert "audio" not in next(CachedFrameBatches(FakeBatches(DATASET), cache, config.model.build()))


def recordings(count: int) -> list[np.ndarray]:
  rng = np.random.default_rng(3)
  return [rng.integers(-3000, 3000, 4000 - 500 * i).astype(np.int16) for i in range(count)]


def test_the_top_of_a_list_is_that_of_every_similarity(run, retriever, monkeypatch):
  config, result = run
  model = config.model.build().objective.model
  bound = {"params": parameters.merge(result.state.params, result.frozen)}

  @jax.jit
  def scores_of(audio, lengths):
    vectors = model.apply(bound, encode_entities(NAMES, 8), method="embed_entities")
    speech, mask = model.apply(bound, audio, lengths, method="embed_speech")
    return soft_maximum(speech, mask, vectors, model.apply(bound, method="scale"))[0]

  # Blocks of two: the last one is not full.
  monkeypatch.setattr(retrieval, "_BLOCK", 2)
  index = retriever.index([*NAMES, "Bo"])
  assert index.entities == NAMES and index.vectors.shape == (4, 2, 8)
  heard = recordings(3)
  found = retriever.retrieve(heard, index, k=5)
  for samples, best in zip(heard, found, strict=True):
    audio = np.pad(samples, (0, 4000 - len(samples)))[None]
    scores = np.asarray(scores_of(audio, np.asarray([len(samples)], np.int32)))
    order = np.argsort(-scores, kind="stable")[:5]
    assert [text for text, _ in best] == [NAMES[i] for i in order]
    np.testing.assert_allclose([score for _, score in best], scores[order], atol=1e-5)
  assert len(retriever.retrieve(heard[:1], index, k=99)[0]) == len(NAMES)


def test_a_long_recording_has_the_best_of_its_pieces(retriever):
  index, long = retriever.index(NAMES), np.concatenate(recordings(3))
  pieces = [long[start:stop] for start, stop in split_audio(long, 4000)]
  assert len(pieces) > 2
  every = [dict(best) for best in retriever.retrieve(pieces, index, k=len(NAMES))]
  ((first, second),) = retriever.retrieve([long], index, k=2)
  best = {name: max(scores[name] for scores in every) for name in NAMES}
  ranked = sorted(best, key=lambda name: -best[name])
  assert [first[0], second[0]] == ranked[:2]
  assert [first[1], second[1]] == pytest.approx([best[name] for name in ranked[:2]], abs=1e-4)


def test_wrong_lists_are_named(retriever):
  index = retriever.index(NAMES)
  for wrong, names in (
    ([], "no entity"),
    (["Bo", " "], "empty"),
    (["Bartholomew"], "'Bartholomew' has 11 bytes, at most 8"),
    (["A|B"], r"'A\|B' holds '\|'"),
  ):
    with pytest.raises(UserError, match=names):
      retriever.index(wrong)
  with pytest.raises(ValueError, match="k=0"):
    retriever.retrieve([], index, k=0)


def test_a_retriever_is_no_frozen_part(run, tmp_path):
  with pytest.raises(ValueError, match="RetrieverRecipe"):
    PretrainConfig(run=run[0], output_dir=str(tmp_path))


def test_the_command_prints_entities_or_requests(run, tmp_path, capsys):
  sound, names = tmp_path / "a.wav", tmp_path / "names.txt"
  soundfile.write(sound, recordings(1)[0], 16_000)
  names.write_text("\n".join(NAMES) + "\n\n", "utf-8")
  argv = ["retrieve", f"--model_dir={run[0].model_dir}", f"--audio={sound}", "--k=2"]
  assert main([*argv, f"--entities={names}"]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  found = json.loads(line)["entities"]
  assert len(found) == 2 and found[0]["score"] >= found[1]["score"]
  assert main([*argv, f"--entities={names}", "--instruction=Write. Names: {entities}."]) == 0
  request = json.loads(capsys.readouterr().out)
  listed = ", ".join(entity["text"] for entity in found)
  assert request == {"audio": str(sound), "instruction": f"Write. Names: {listed}."}


def test_mistakes_of_the_command_are_one_line(run, tmp_path, capsys):
  empty, bad = tmp_path / "empty.txt", tmp_path / "bad.txt"
  empty.write_text("\n \n")
  bad.write_bytes(b"\xff\xfe\xff")
  model = f"--model_dir={run[0].model_dir}"
  for argv, named in (
    ([model, "--entities=nowhere.txt", "--audio=a.wav"], "nowhere.txt"),
    ([model, f"--entities={empty}", "--audio=a.wav"], "lists no entity"),
    ([model, f"--entities={bad}", "--audio=a.wav"], "UTF-8"),
    ([model, f"--entities={empty}"], "--audio"),
    ([model, f"--entities={empty}", "--audio=a.wav", "--k=0"], "--k=0"),
    ([model, f"--entities={empty}", "--audio=a.wav", "--instruction=x"], "{entities}"),
  ):
    assert main(["retrieve", *argv]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("slm_jax: error: ") and named in error
