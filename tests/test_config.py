"""gin files bind dataclasses strictly."""

from pathlib import Path

import pytest

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.training.config import Recipe

EXPERIMENTS = sorted(Path("gin/experiments").glob("*.gin"))
MINI = ["experiments/mini.gin"]
HERE = ["MODEL_DIR='somewhere'"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_builds(path):
  data = ["MIXTURE_OR_TASK_NAME='some_task'", "MIXTURE_OR_TASK_MODULE='tasks.some'"]
  config.load([str(path)], HERE + data)
  run = config.build("train")
  assert run.model_dir == "somewhere"
  assert isinstance(run.model, Recipe)


def test_bindings_override_files_and_macros_reach_their_users():
  config.load(MINI, [*HERE, "BATCH_SIZE=8", "OptimizerConfig.warmup_steps=3"])
  run = config.build("train")
  assert run.train_dataset.batch_size == 8
  assert run.optimizer.warmup_steps == 3


def test_operative_config_loads_again(tmp_path):
  config.load(MINI, [*HERE, "BATCH_SIZE=8"])
  run = config.build("train")
  (tmp_path / "config.gin").write_text(config.operative())
  config.load([str(tmp_path / "config.gin")])
  assert config.build("train") == run


@pytest.mark.parametrize(
  ("binding", "names"),
  [
    ("BATCH_SIZ=8", ["BATCH_SIZ", "BATCH_SIZE"]),
    ("AdapterConfig.num_layer=3", ["num_layer", "num_layers"]),
    ("AdaptorConfig.num_layers=3", ["AdaptorConfig", "AdapterConfig"]),
    ("AdapterConfig.num_layers='three'", ["AdapterConfig.num_layers", "three", "int"]),
    ("AdapterConfig.num_layers=True", ["AdapterConfig.num_layers", "int"]),
    ("BATCH_SIZE=2.5", ["batch_size", "2.5", "int"]),
    ("AdapterConfig.head_dim=33", ["head_dim=33", "even"]),
    ("OptimizerConfig.decay='linear'", ["linear", "cosine"]),
    ("MODEL_DIR=unquoted", ["unquoted", "quotes"]),
    ("LengthReductionConfig.kind='dorp'", ["dorp", "drop"]),
  ],
)
def test_mistakes_name_the_thing_and_the_way_out(binding, names):
  with pytest.raises(UserError) as caught:
    config.load(MINI, [*HERE, binding])
    config.build("train")
  assert "\n" not in str(caught.value)
  for name in names:
    assert name in str(caught.value)


def test_required_macro_that_is_not_bound_is_named():
  config.load(MINI)
  with pytest.raises(UserError, match="MODEL_DIR"):
    config.build("train")


@pytest.mark.parametrize(
  ("text", "names"),
  [
    ("BATCH_SIZE = 1\nBATCH_SIZE = 2\n", ["bound twice", "BATCH_SIZE", ":3"]),
    ("train.total_stepz = 1\n", ["total_stepz", "total_steps", ":2"]),
    ("MeshConfig.data = \n", [":2"]),
    ("include 'experiments/nothing.gin'\n", ["nothing.gin"]),
  ],
)
def test_mistakes_in_files_name_file_and_line(tmp_path, text, names):
  path = tmp_path / "mine.gin"
  path.write_text("include 'experiments/mini.gin'\n" + text)
  with pytest.raises(UserError) as caught:
    config.load([str(path)], HERE)
  for name in names:
    assert name in str(caught.value)


def test_missing_and_binary_gin_files(tmp_path):
  with pytest.raises(UserError, match="mini.gin"):
    config.load(["experiments/minni.gin"])
  (tmp_path / "x.gin").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match="UTF-8"):
    config.load([str(tmp_path / "x.gin")])
