"""Checkpoints on their own: what they refuse, what another run takes from them, which is the best."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.errors import UserError
from slm_jax.training.checkpoints import Checkpoints
from slm_jax.training.config import FakeDatasetConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.loop import initial_state
from slm_jax.training.optimizer import OptimizerConfig, make_optimizer
from slm_jax.training.restore import checkpoint_folder
from slm_jax.training.sharding import MeshConfig, make_mesh
from slm_jax.training.step import TrainState, init_state

BASES = {"language_model": "0123"}
LENGTHS = {"audio": 4000, "inputs": 4, "targets": 6}
BATCHES = FakeBatches(FakeDatasetConfig(task_feature_lengths=LENGTHS, batch_size=8, vocab_size=64))


def make_state(value: float, *, algorithm="adamw", width=8, name="kernel") -> TrainState:
  """One parameter over eight devices."""
  sharding = NamedSharding(make_mesh(MeshConfig(data=1, fsdp=8)), PartitionSpec("fsdp"))
  params = {"adapter": {name: jax.device_put(jnp.full((8, width), value), sharding)}}
  optimizer = make_optimizer(OptimizerConfig(algorithm=algorithm), 10)
  return init_state(params, optimizer, 0)


@pytest.fixture
def saved(tmp_path):
  """A run's folder with the checkpoints 1 and 2 of the parameters 1.0 and 2.0."""
  checkpoints = Checkpoints(tmp_path / "run", keep=2)
  for step in (1, 2):
    checkpoints.save(step, make_state(float(step)), BATCHES, {"frozen": BASES})
  checkpoints.wait()
  checkpoints.close()
  return tmp_path / "run"


def test_another_run_takes_the_parameters_and_nothing_else(saved):
  new = make_state(0.0, algorithm="adafactor")
  found = initial_state(str(saved / "checkpoint_1"), new, BASES)
  kernel = found.params["adapter"]["kernel"]
  np.testing.assert_array_equal(kernel, np.ones((8, 8)))
  assert kernel.sharding == new.params["adapter"]["kernel"].sharding
  assert found.opt_state is new.opt_state and found.step is new.step


@pytest.mark.parametrize(
  ("folder", "changes", "bases", "said"),
  [
    ("", {}, BASES, "expected a folder …/checkpoint_<step>"),
    ("checkpoint_3", {}, BASES, "expected a folder …/checkpoint_<step>"),
    ("checkpoint_1", {}, {"language_model": "4567"}, "trained over another language_model"),
    ("checkpoint_1", {"width": 4}, BASES, r"adapter/kernel has the shape \(8, 8\)"),
    ("checkpoint_1", {"name": "bias"}, BASES, "has no adapter/bias"),
  ],
)
def test_an_adapter_that_does_not_fit_is_refused(saved, folder, changes, bases, said):
  with pytest.raises(UserError, match=said):
    initial_state(str(saved / folder), make_state(0.0, **changes), bases)


@pytest.mark.parametrize("part", ["state", "info", "data"])
def test_a_damaged_checkpoint_is_named_and_so_is_the_one_before(saved, part):
  if part == "state":
    for path in (saved / "checkpoint_2" / "state").rglob("d/*"):
      path.write_bytes(path.read_bytes()[:-7])
  else:
    shutil.rmtree(saved / "checkpoint_2" / part)
  checkpoints = Checkpoints(saved, keep=2)
  with pytest.raises(UserError, match="checkpoint_2 in .* damaged.* goes on from checkpoint_1"):
    checkpoints.restore(2, make_state(0.0), BATCHES, {"frozen": BASES})
  restored = checkpoints.restore(1, make_state(0.0), BATCHES, {"frozen": BASES})
  checkpoints.close()
  np.testing.assert_array_equal(restored.params["adapter"]["kernel"], np.ones((8, 8)))


def test_a_held_out_loss_that_is_no_number_is_not_the_best(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1)
  for step, loss in enumerate((2.0, float("nan"), 3.0), start=1):
    metrics = {"eval_loss": loss}
    checkpoints.save(step, make_state(1.0), BATCHES, {"frozen": BASES}, metrics)
  checkpoints.wait()
  checkpoints.close()
  assert {path.name for path in tmp_path.glob("checkpoint_*")} == {"checkpoint_1", "checkpoint_3"}
  assert checkpoint_folder(tmp_path, "best").name == "checkpoint_1"
