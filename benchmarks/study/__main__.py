"""The miniature study: trains its adapters, asks them, and writes study.md, study.json and pictures.

  python -m benchmarks.study                # make study
  python -m benchmarks.study --only=seed    # runs whose name begins so
  python -m benchmarks.study --report       # from what has been measured so far

Killed, it goes on with the same command: trainings from their last checkpoint, finished
texts are kept. Everything lies in runs/study, or --folder.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.study.report import write_report
from benchmarks.study.runs import EXPERIMENT, RUNS, StudyRun

BASES = "bases"


def main() -> None:
  """Runs what is not there yet."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--folder", type=Path, default=Path("runs/study"))
  parser.add_argument("--only", default="")
  parser.add_argument("--report", action="store_true", help="nothing is trained or asked")
  flags = parser.parse_args()
  chosen = [run for run in RUNS if run.name.startswith(flags.only)]
  began = time.monotonic()
  for number, run in enumerate([] if flags.report else chosen, 1):
    train(run, flags.folder)
    measure(run, flags.folder)
    minutes = (time.monotonic() - began) / 60
    left = minutes / number * (len(chosen) - number)
    print(
      f"[study] {run.name}: {number} of {len(chosen)}, {minutes:.0f} min, ETA {left:.0f} min",
      flush=True,
    )
  print(f"[study] {write_report(flags.folder)}")


def train(run: StudyRun, folder: Path) -> None:
  """Trains the run's adapter, unless it is there."""
  bindings = {"MODEL_DIR": str(folder / run.name), **run.bindings}
  if run.frames:
    bindings["train.frame_cache"] = str(folder / "frames")
    _slm_jax("cache", run, bindings)
  _slm_jax("train", run, bindings)


def _slm_jax(mode: str, run: StudyRun, bindings: dict) -> None:
  argv = [sys.executable, "-m", "slm_jax", mode]
  argv += [f"--gin_file={path}" for path in (EXPERIMENT, *run.gin_files)]
  subprocess.run(argv + [f"--gin.{name}={value!r}" for name, value in bindings.items()], check=True)


def measure(run: StudyRun, folder: Path) -> None:
  """Asks the run's adapter; the first one's bases, which all share, are asked too."""
  probed = run.whole or run.group == "probe"
  _ask(run, folder, folder / run.name / "texts", "slm,shuffled,silenced" if probed else "slm")
  if run is RUNS[0]:
    _ask(run, folder, folder / BASES, "ctc,oracle,cascade")


def _ask(run: StudyRun, folder: Path, output: Path, systems: str) -> None:
  argv = [sys.executable, "-m", "benchmarks.study.measure", f"--model_dir={folder / run.name}"]
  argv += [f"--output={output}", f"--systems={systems}", *(() if run.whole else ("--short",))]
  subprocess.run(argv, check=True)


if __name__ == "__main__":
  main()
