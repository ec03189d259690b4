"""The train loop over tiny real bases and fake batches: frozen stays frozen, resume is bitwise, meshes agree."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.errors import UserError
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training import parameters
from slm_jax.training.config import FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.loop import train
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.preemption import nothing_to_save
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import (
  checkpoint_folder,
  load_speech_language_model,
  restore_trained,
)
from slm_jax.training.scalars import read_scalars
from slm_jax.training.sharding import MeshConfig, make_mesh

DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 4000, "inputs": 4, "targets": 6}, batch_size=8, vocab_size=64
)


def make_config(tmp_path, bases, **changes) -> TrainConfig:
  recipe = AdapterRecipe(
    **bases,
    adapter=AdapterConfig(
      num_layers=1,
      num_heads=2,
      head_dim=8,
      mlp_dim=16,
      dropout_rate=0.1,
      length_reduction=LengthReductionConfig(kind="stack", factor=2),
    ),
  )
  fields = {
    "model_dir": str(tmp_path / "run"),
    "model": recipe,
    "train_dataset": DATASET,
    "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="constant"),
    "total_steps": 6,
    "log_period": 1,
    "checkpoint_period": 3,
  }
  return TrainConfig(**(fields | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_bases):
  """(config, result) of a run that nothing has interrupted; nothing changes its folder."""
  config = make_config(tmp_path_factory.mktemp("whole"), tiny_bases)
  return config, train(config, FakeBatches(DATASET), run_text="# operative\n")


def losses(config) -> list[float]:
  return [line["loss"] for line in read_scalars(Path(config.model_dir) / "train.jsonl")]


def shardings(tree) -> list:
  return [leaf.sharding for leaf in jax.tree.leaves(tree)]


def assert_same(a: dict, b: dict):
  a, b = parameters.flatten(a), parameters.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_only_the_adapter_moves_and_is_saved(whole, tmp_path, tiny_bases):
  config, result = whole
  before = config.model.build().loaded
  assert_same(before, jax.device_get(result.frozen))
  assert set(result.state.params) == {"adapter"}
  saved = restore_trained(Path(config.model_dir) / "checkpoint_6")
  assert_same(saved, jax.device_get(result.state.params))
  fresh = train(make_config(tmp_path / "b", tiny_bases, total_steps=1), FakeBatches(DATASET))
  moved = [
    not np.array_equal(x, y)
    for x, y in zip(
      jax.tree.leaves(jax.device_get(fresh.state.params)),
      jax.tree.leaves(jax.device_get(result.state.params)),
      strict=True,
    )
  ]
  assert all(moved)
  moments = sum(x.size for x in jax.tree.leaves(result.state.opt_state) if x.ndim)
  assert moments == 2 * parameters.count(saved)


def test_model_dir_holds_what_a_t5x_user_looks_for(whole):
  folder = Path(whole[0].model_dir)
  assert (folder / "config.gin").read_text() == "# operative\n"
  info = (folder / "model-info.txt").read_text()
  assert "adapter/projection/kernel" in info and "trained" in info and "frozen" in info
  assert list((folder / "tensorboard").glob("events.*"))
  assert [line["step"] for line in read_scalars(folder / "train.jsonl")] == [1, 2, 3, 4, 5, 6]
  assert json.loads((folder / "memory.json").read_text())["argument_bytes"] > 0


def test_resume_equals_uninterrupted_bitwise(whole, tmp_path, tiny_bases):
  cut = make_config(tmp_path / "cut", tiny_bases)
  # Same schedule (constant), so stopping at step 3 and asking for 6 is the same run continued.
  train(dataclasses.replace(cut, total_steps=3), FakeBatches(DATASET))
  resumed = train(cut, FakeBatches(DATASET))
  assert_same(jax.device_get(whole[1].state.params), jax.device_get(resumed.state.params))
  assert losses(whole[0]) == losses(cut)


def test_state_stays_where_it_is_so_that_the_compilation_cache_knows_a_resumed_run(
  tmp_path, tiny_bases
):
  config = make_config(tmp_path, tiny_bases, mesh=MeshConfig(data=8), total_steps=1)
  first = train(config, FakeBatches(DATASET)).state
  config = make_config(tmp_path, tiny_bases, mesh=MeshConfig(data=8), total_steps=2)
  assert shardings(train(config, FakeBatches(DATASET)).state) == shardings(first)
  specs = [sharding.spec for sharding in shardings(first)]
  # An axis of size 1 keeps its name.
  assert PartitionSpec("fsdp", "tensor") in specs


def test_sigterm_saves_and_resumes_exactly(whole, tmp_path, tiny_bases):
  class Interrupted(FakeBatches):
    def __next__(self):
      if self._index == 4:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().__next__()

  config = make_config(tmp_path / "cut", tiny_bases, checkpoint_period=100)
  stopped = train(config, Interrupted(DATASET))
  assert not stopped.finished and stopped.step < 6
  resumed = train(config, FakeBatches(DATASET))
  assert resumed.finished
  assert_same(jax.device_get(whole[1].state.params), jax.device_get(resumed.state.params))


def test_sigterm_before_there_is_something_to_save_ends_at_once(monkeypatch, capsys):
  left = []
  monkeypatch.setattr(os, "_exit", left.append)
  before = signal.getsignal(signal.SIGTERM)
  with nothing_to_save(143):
    os.kill(os.getpid(), signal.SIGTERM)
  assert left == [143] and "run the same command again" in capsys.readouterr().err
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_starts_from_another_s_adapter_unless_it_has_one_itself(tmp_path, tiny_bases):
  train(make_config(tmp_path / "other", tiny_bases, total_steps=1), FakeBatches(DATASET))
  start = tmp_path / "other" / "run" / "checkpoint_1"
  config = make_config(tmp_path, tiny_bases, initial_checkpoint_path=str(start), total_steps=1)
  train(config, FakeBatches(DATASET))
  # The same batch and dropout, by parameters that have moved.
  assert losses(config) != losses(make_config(tmp_path / "other", tiny_bases))
  start.rename(tmp_path / "away")
  assert train(dataclasses.replace(config, total_steps=2), FakeBatches(DATASET)).finished
  with pytest.raises(UserError, match=r"INITIAL_CHECKPOINT_PATH='.*/checkpoint_1'"):
    train(dataclasses.replace(config, model_dir=str(tmp_path / "new")), FakeBatches(DATASET))


def augmented(tmp_path, bases, name: str, mesh: MeshConfig):
  """20 steps with dropout in the adapter and masked spectrograms."""
  config = make_config(tmp_path / name, bases, mesh=mesh, total_steps=20, checkpoint_period=20)
  recipe = dataclasses.replace(config.model, spec_augment=SpecAugmentConfig())
  return dataclasses.replace(config, model=recipe)


def test_every_mesh_gives_the_same_losses(tmp_path, tiny_bases, monkeypatch):
  meshes = {
    "8x1": MeshConfig(data=8),
    "1x8": MeshConfig(data=1, fsdp=8),
    "2x4": MeshConfig(data=2, fsdp=4),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
  }
  found = {}
  for name, mesh in meshes.items():
    config = augmented(tmp_path, tiny_bases, name, mesh)
    train(config, FakeBatches(DATASET))
    found[name] = losses(config)
  devices = jax.devices()
  monkeypatch.setattr(jax, "devices", lambda *a: devices[:1])
  alone = augmented(tmp_path, tiny_bases, "alone", MeshConfig())
  train(alone, FakeBatches(DATASET))
  for name in meshes:
    np.testing.assert_allclose(found[name], losses(alone), rtol=1e-5, err_msg=name)


def test_microbatches_change_only_rounding(tmp_path, tiny_bases):
  mesh = MeshConfig(data=2, fsdp=2, tensor=2)
  quiet = make_config(tmp_path, tiny_bases).model
  quiet = dataclasses.replace(quiet, adapter=dataclasses.replace(quiet.adapter, dropout_rate=0.0))
  one = make_config(tmp_path / "one", tiny_bases, mesh=mesh, model=quiet)
  two = dataclasses.replace(one, model_dir=str(tmp_path / "two"), num_microbatches=2)
  train(one, FakeBatches(DATASET))
  train(two, FakeBatches(DATASET))
  np.testing.assert_allclose(losses(one), losses(two), rtol=1e-5)


def test_moments_in_host_memory_change_nothing_but_their_place(whole, tmp_path):
  near, expected = whole
  optimizer = dataclasses.replace(near.optimizer, state_memory="pinned_host")
  far = dataclasses.replace(near, model_dir=str(tmp_path / "far"), optimizer=optimizer)
  train(dataclasses.replace(far, total_steps=3), FakeBatches(DATASET))
  resumed = train(far, FakeBatches(DATASET)).state
  assert_same(jax.device_get(expected.state.params), jax.device_get(resumed.params))
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(resumed.opt_state) if x.ndim}
  assert kinds == {"pinned_host"}


def test_another_config_in_the_same_model_dir_is_refused(whole):
  folder = Path(whole[0].model_dir)
  before = sorted((f, f.stat().st_mtime_ns) for f in folder.rglob("*"))
  with pytest.raises(UserError, match=r"random_seed=0.*1"):
    train(dataclasses.replace(whole[0], random_seed=1), FakeBatches(DATASET))
  assert sorted((f, f.stat().st_mtime_ns) for f in folder.rglob("*")) == before


def test_a_run_of_an_older_version_goes_on_with_what_new_fields_are_by_default(
  tmp_path, tiny_bases
):
  config = make_config(tmp_path, tiny_bases)
  train(dataclasses.replace(config, total_steps=3), FakeBatches(DATASET))
  path = tmp_path / "run" / "run.json"
  described = json.loads(path.read_text())
  assert described.pop("optimizer.state_memory") == "device"
  path.write_text(json.dumps(described))
  assert train(config, FakeBatches(DATASET)).finished
  path.write_text(json.dumps(described))
  optimizer = dataclasses.replace(config.optimizer, state_memory="pinned_host")
  with pytest.raises(UserError, match="state_memory='device', this one has 'pinned_host'"):
    train(dataclasses.replace(config, optimizer=optimizer), FakeBatches(DATASET))


def test_batch_that_does_not_divide_is_refused_before_anything_is_written(tmp_path, tiny_bases):
  dataset = dataclasses.replace(DATASET, batch_size=12)
  config = make_config(tmp_path, tiny_bases, train_dataset=dataset)
  with pytest.raises(UserError, match="BATCH_SIZE=12"):
    train(config, FakeBatches(dataset))
  assert not (tmp_path / "run").exists()


def test_a_model_dir_that_cannot_be_made_is_one_line(tmp_path, tiny_bases):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="MODEL_DIR='.*/file/run' cannot be written"):
    train(make_config(tmp_path / "file", tiny_bases), FakeBatches(DATASET))


class Poisoned(FakeBatches):
  """Batches of which some have no weight that is a number."""

  def __init__(self, config, steps: set[int]):
    super().__init__(config)
    self._steps = steps

  def __next__(self):
    arrays = super().__next__()
    if self._index in self._steps:
      arrays["decoder_loss_weights"] = arrays["decoder_loss_weights"] * np.float32("nan")
    return arrays


def test_a_loss_that_is_not_finite_stops_and_names_step_examples_and_checkpoint(
  whole, tmp_path, tiny_bases
):
  config = make_config(tmp_path, tiny_bases, checkpoint_period=2)
  with pytest.raises(UserError, match=r"step 4: loss nan.*fake-3-0, fake-3-1.*/checkpoint_2"):
    train(config, Poisoned(DATASET, {4}))
  lines = (tmp_path / "run" / "skipped_steps.jsonl").read_text().strip().split("\n")
  assert [json.loads(line)["step"] for line in lines] == [4]
  assert json.loads(lines[0])["example_ids"] == [f"fake-3-{row}" for row in range(8)]
  assert not (tmp_path / "run" / "checkpoint_4").exists()
  # The same batch with numbers in it: the run goes on as if nothing had happened.
  assert_same(
    jax.device_get(whole[1].state.params),
    jax.device_get(train(config, FakeBatches(DATASET)).state.params),
  )


def test_steps_within_the_budget_are_skipped_and_counted_across_a_resume(tmp_path, tiny_bases):
  def run(steps: int, poisoned: set[int], budget: int = 2):
    config = make_config(tmp_path, tiny_bases, total_steps=steps, nonfinite_budget=budget)
    return train(config, Poisoned(DATASET, poisoned)).state

  before = run(3, set())
  after = run(4, {4})
  assert_same(jax.device_get(before.params), jax.device_get(after.params))
  for old, new in zip(
    jax.tree.leaves(before.opt_state), jax.tree.leaves(after.opt_state), strict=True
  ):
    np.testing.assert_array_equal(old, new)
  assert int(after.step) == 4
  run(6, {5})
  with pytest.raises(UserError, match="step 8: loss nan"):
    run(9, {8})


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, tiny_bases, capsys):
  held_out = dataclasses.replace(DATASET, seed=1)
  # Grows until it ruins the adapter, so that the best is not the newest.
  optimizer = OptimizerConfig(learning_rate=3e-2, warmup_steps=1, decay="constant")
  config = make_config(
    tmp_path,
    tiny_bases,
    optimizer=optimizer,
    total_steps=8,
    checkpoint_period=1,
    keep_checkpoints=1,
    eval_dataset=held_out,
    eval_steps=2,
  )
  train(config, FakeBatches(DATASET), held_out=FakeBatches(held_out))
  lines = read_scalars(tmp_path / "run" / "eval.jsonl")
  assert [line["step"] for line in lines] == list(range(1, 9))
  best = min(lines, key=lambda line: line["eval_loss"])["step"]
  kept = {path.name for path in (tmp_path / "run").glob("checkpoint_*")}
  assert kept == {f"checkpoint_{best}", "checkpoint_8"}
  assert checkpoint_folder(config.model_dir, "best").name == f"checkpoint_{best}"
  assert checkpoint_folder(config.model_dir).name == "checkpoint_8"
  assert f"eval_loss {lines[-1]['eval_loss']:.4f}" in capsys.readouterr().err


def test_without_held_out_losses_there_is_no_best(tmp_path, tiny_bases):
  config = make_config(tmp_path, tiny_bases, total_steps=1)
  train(config, FakeBatches(DATASET))
  with pytest.raises(UserError, match="no held-out losses.*train.eval_dataset"):
    checkpoint_folder(config.model_dir, "best")


def test_a_frozen_encoder_hears_masked_spectrograms_where_the_run_asks_for_it(tmp_path, tiny_bases):
  plain = make_config(tmp_path / "plain", tiny_bases, total_steps=1)
  masked = dataclasses.replace(plain.model, spec_augment=SpecAugmentConfig())
  other = dataclasses.replace(plain, model=masked, model_dir=str(tmp_path / "masked"))
  for config in (plain, other):
    train(config, FakeBatches(DATASET))
  assert losses(plain) != losses(other)


def test_trained_adapter_answers_and_another_base_is_refused(whole):
  config = whole[0]
  model, step = load_speech_language_model(
    config.model, config.model_dir, step=None, max_samples=4000
  )
  assert step == 6
  batch = next(FakeBatches(DATASET))
  ids, scores = model.generate(
    batch["audio"], batch["audio_lengths"], batch["encoder_input_tokens"], max_new_tokens=5
  )
  assert ids.shape == (8, 5) and scores.shape == (8,)
  assert len(model.ctc_transcribe(batch["audio"], batch["audio_lengths"])) == 8
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  spread, _ = load_speech_language_model(
    config.model, config.model_dir, step=None, max_samples=4000, mesh=mesh
  )
  # 5 rows do not divide over 4 parts.
  few = [batch[name][:5] for name in ("audio", "audio_lengths", "encoder_input_tokens")]
  for options in ({"max_new_tokens": 5}, {"max_new_tokens": 5, "num_beams": 2}):
    expected, found = model.generate(*few, **options), spread.generate(*few, **options)
    assert isinstance(found.ids, np.ndarray)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
  assert spread.ctc_transcribe(*few[:2]) == model.ctc_transcribe(*few[:2])
  prompt = {"tokens": few[2], "max_new_tokens": 5, "max_lengths": np.arange(1, 6)}
  expected = model.language_model.generate(**prompt)
  np.testing.assert_array_equal(spread.language_model.generate(**prompt).ids, expected.ids)
  other = dataclasses.replace(config.model, frozen_dtype="bfloat16")
  with pytest.raises(UserError, match="fingerprint"):
    load_speech_language_model(other, config.model_dir, step=None, max_samples=4000)
  with pytest.raises(UserError, match="no checkpoint_5"):
    load_speech_language_model(config.model, config.model_dir, step=5, max_samples=4000)
