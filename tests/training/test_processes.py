"""Runs of several processes over loopback: the same curve whatever their number, and none that hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from slm_jax.cli.main import main
from slm_jax.training.scalars import read_scalars

GIN = """
train.model_dir = %MODEL_DIR
train.total_steps = %TRAIN_STEPS
train.model = @AdapterRecipe()
train.train_dataset = @FakeDatasetConfig()
train.optimizer = @OptimizerConfig()
train.mesh = @MeshConfig()
train.log_period = 1
train.checkpoint_period = 4
train.keep_checkpoints = 100
MeshConfig.data = -1
FakeDatasetConfig.task_feature_lengths = {'audio': 4000, 'inputs': 4, 'targets': 6}
FakeDatasetConfig.batch_size = 8
FakeDatasetConfig.vocab_size = 64
OptimizerConfig.learning_rate = 3e-3
OptimizerConfig.warmup_steps = 2
OptimizerConfig.decay = 'constant'
AdapterRecipe.speech_encoder = %SPEECH_ENCODER
AdapterRecipe.language_model = %LANGUAGE_MODEL
AdapterRecipe.adapter = @AdapterConfig()
AdapterRecipe.spec_augment = @SpecAugmentConfig()
AdapterConfig.num_layers = 1
AdapterConfig.num_heads = 2
AdapterConfig.head_dim = 8
AdapterConfig.mlp_dim = 16
AdapterConfig.dropout_rate = 0.1
AdapterConfig.length_reduction = @LengthReductionConfig()
LengthReductionConfig.kind = 'stack'
LengthReductionConfig.factor = 2
"""


# What hangs ends; a busy machine may take its time.
PATIENCE = 600


def free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]


class Job:
  """`slm_jax train` as `count` processes of one device or more."""

  def __init__(
    self, folder: Path, bases: dict[str, str], *, steps: int, count: int, devices: int, fsdp: int
  ):
    (folder / "run.gin").write_text(GIN)
    argv = ["train", f"--gin_file={folder / 'run.gin'}", f"--gin.TRAIN_STEPS={steps}"]
    argv += [f"--gin.{name.upper()}='{path}'" for name, path in bases.items()]
    argv += [f"--gin.MODEL_DIR='{folder / 'run'}'", f"--gin.MeshConfig.fsdp={fsdp}"]
    self.lines = folder / "run" / "train.jsonl"
    address = f"127.0.0.1:{free_port()}"
    several = [f"--coordinator_address={address}", f"--process_count={count}"]
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
    environment = os.environ | {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    self.processes = [
      subprocess.Popen(
        [sys.executable, "-m", "slm_jax", *argv, *(several if count > 1 else [])]
        + ([f"--process_index={i}"] if count > 1 else []),
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(count)
    ]

  def wait_for_step(self, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(line["step"] >= step for line in read_scalars(self.lines)):
      assert time.monotonic() < deadline
      dead = [p for p in self.processes if p.poll() is not None]
      assert not dead, dead[0].stderr.read()[-3000:]
      time.sleep(0.05)

  def end(self, timeout: float = PATIENCE) -> list[tuple[int, list[str]]]:
    """Status and lines of stderr that are ours, by process."""
    found = []
    try:
      for process in self.processes:
        text = process.communicate(timeout=timeout)[1]
        found.append((process.returncode, [s for s in text.split("\n") if "slm_jax" in s]))
    finally:
      for process in self.processes:
        process.kill()
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory, tiny_bases):
  """One run by 2 processes until SIGTERM, by 4 until one of them is killed, by one with 8 devices to its end;
  and the same run by one process with one device."""
  folder = tmp_path_factory.mktemp("changing")
  first = Job(folder, tiny_bases, steps=100_000, count=2, devices=2, fsdp=2)
  first.wait_for_step(5)
  first.processes[1].send_signal(signal.SIGTERM)
  stopped = first.end()
  at = read_scalars(first.lines)[-1]["step"]

  second = Job(folder, tiny_bases, steps=100_000, count=4, devices=1, fsdp=2)
  second.wait_for_step(at + 5)
  second.processes[2].kill()
  began = time.monotonic()
  killed = second.end()
  seconds = time.monotonic() - began

  newest = max(int(p.name.removeprefix("checkpoint_")) for p in (folder / "run").glob("ch*_*"))
  steps = max(newest + 3, 20)
  third = Job(folder, tiny_bases, steps=steps, count=1, devices=8, fsdp=4)
  finished = third.end()

  alone = tmp_path_factory.mktemp("alone")
  fourth = Job(alone, tiny_bases, steps=steps, count=1, devices=1, fsdp=1)
  reference = fourth.end()
  assert reference[0][0] == 0, reference
  return {
    "stopped": stopped,
    "killed": killed,
    "seconds": seconds,
    "finished": finished,
    "steps": steps,
    "changing": read_scalars(third.lines),
    "alone": read_scalars(fourth.lines),
  }


def test_the_curve_does_not_depend_on_the_number_of_processes_and_devices(story):
  """With dropout, SpecAugment, and two resumes on another number of processes."""
  assert story["finished"][0][0] == 0
  changing, alone = (
    {line["step"]: line["loss"] for line in story[name]} for name in ("changing", "alone")
  )
  assert list(changing) == list(alone) == list(range(1, story["steps"] + 1))
  np.testing.assert_allclose(list(changing.values()), list(alone.values()), rtol=1e-5)


def test_sigterm_to_one_process_stops_all_at_the_same_step(story):
  assert [status for status, _ in story["stopped"]] == [0, 0]
  assert any("run the same command again to resume" in s for s in story["stopped"][0][1])


def test_when_one_is_killed_the_others_end_with_one_line(story):
  assert story["seconds"] < 60
  for i in (0, 1, 3):
    status, lines = story["killed"][i]
    errors = [s for s in lines if "error" in s]
    assert status == 1
    assert len(errors) == 1 and "process 2 (" in errors[0] and "is gone" in errors[0]


def test_one_process_alone_names_the_missing(tmp_path, tiny_bases):
  (tmp_path / "run.gin").write_text(GIN)
  argv = [sys.executable, "-m", "slm_jax", "train", f"--gin_file={tmp_path / 'run.gin'}"]
  argv += [f"--gin.{name.upper()}='{path}'" for name, path in tiny_bases.items()]
  argv += ["--gin.TRAIN_STEPS=1", f"--gin.MODEL_DIR='{tmp_path / 'run'}'", "--roll_call_seconds=1"]
  argv += [f"--coordinator_address=127.0.0.1:{free_port()}", "--process_count=3"]
  result = subprocess.run([*argv, "--process_index=0"], capture_output=True, text=True, timeout=120)
  assert result.returncode == 2
  assert result.stderr.count("\n") == 1 and "missing: process 1, 2" in result.stderr


def test_flags_that_do_not_go_together_are_refused(capsys):
  assert main(["train", "--process_count=2"]) == 2
  assert "--coordinator_address" in capsys.readouterr().err
