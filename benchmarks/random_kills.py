"""Kills a run again and again, resumes it each time, and compares its end with that of a run left alone.

  python benchmarks/random_kills.py --kills 30 --folder /tmp/kills

runs the demo (gin/experiments/mini.gin) twice. One run is killed while it starts and reads data, in its steps, and
while a checkpoint is being written; with SIGKILL or SIGTERM, drawn at random. Prints JSON: what was done, and whether
parameters, optimizer state and reported losses are bitwise those of the other run.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from slm_jax.training.restore import checkpoint_folder
from slm_jax.training.scalars import read_scalars

MOMENTS = ("data", "step", "save")


def main() -> None:
  """Runs both and prints the comparison; exit status 1 if they differ."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--folder", type=Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--gin_file", default="experiments/mini.gin")
  parser.add_argument("binding", nargs="*", help="--gin.NAME=VALUE after --")
  flags = parser.parse_args()
  flags.folder.mkdir(parents=True, exist_ok=True)
  left_alone, killed = flags.folder / "left_alone", flags.folder / "killed"

  def start(model_dir: Path) -> subprocess.Popen:
    argv = [sys.executable, "-m", "slm_jax", "train", f"--gin_file={flags.gin_file}"]
    argv += [f"--gin.MODEL_DIR='{model_dir}'", f"--gin.TRAIN_STEPS={flags.steps}"]
    argv += ["--gin.train.checkpoint_period=10", "--gin.train.log_period=1", *flags.binding]
    with (flags.folder / f"{model_dir.name}.log").open("a") as log:
      return subprocess.Popen(argv, stdout=log, stderr=log)

  assert start(left_alone).wait() == 0, "see left_alone.log"
  done, draw = Counter(), random.Random(flags.seed)
  while sum(done.values()) < flags.kills:
    process = start(killed)
    moment = MOMENTS[sum(done.values()) % len(MOMENTS)]
    wait_for(moment, killed, process, draw)
    if process.poll() is not None:
      assert process.returncode == 0, "see killed.log"
      break  # at its end before all kills were done
    kind = draw.choice((signal.SIGKILL, signal.SIGTERM))
    process.send_signal(kind)
    status = process.wait()
    done[f"{kind.name} in {moment}, status {status}"] += 1
    print(f"{sum(done.values())}: {kind.name} in {moment}, status {status}", file=sys.stderr)
  assert start(killed).wait() == 0, "see killed.log"
  report = {"kills": sum(done.values()), "how": done, "steps": flags.steps}
  report |= compare(left_alone, killed)
  print(json.dumps(report, indent=1))
  if not all(report[name] for name in ("same_state", "same_losses")):
    raise SystemExit(1)


def wait_for(moment: str, model_dir: Path, process: subprocess.Popen, draw: random.Random) -> None:
  """Returns at a random time within that moment of the run, or once the process has ended."""
  lines = model_dir / "train.jsonl"
  before = len(read_scalars(lines))
  if moment == "data":
    time.sleep(draw.uniform(1.0, 20.0))
    return
  while process.poll() is None:
    if moment == "step" and len(read_scalars(lines)) > before + draw.randrange(1, 16):
      time.sleep(draw.uniform(0.0, 0.5))
      return
    if moment == "save" and any(model_dir.glob("*orbax-checkpoint-tmp*")):
      time.sleep(draw.uniform(0.0, 0.05))
      return
    time.sleep(0.002)


def compare(one: Path, other: Path) -> dict[str, bool]:
  """Whether the last checkpoints' states, and all reported losses, are bitwise the same."""
  states = []
  for folder in (one, other):
    with ocp.StandardCheckpointer() as reader:
      states.append(reader.restore(checkpoint_folder(folder) / "state"))
  first, second = (jax.tree.leaves_with_path(state) for state in states)
  same_state = len(first) == len(second) and all(
    path == other_path and np.array_equal(leaf, other_leaf)
    for (path, leaf), (other_path, other_leaf) in zip(first, second, strict=True)
  )
  losses = [
    [(line["step"], line["loss"]) for line in read_scalars(folder / "train.jsonl")]
    for folder in (one, other)
  ]
  return {"same_state": same_state, "same_losses": losses[0] == losses[1]}


if __name__ == "__main__":
  main()
