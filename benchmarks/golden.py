"""Prints the loss curve of a run of the main job beside the recorded one; exits 1 outside the tolerance.

  python benchmarks/golden.py --model_dir runs/mini

`--record` replaces the recorded curve by the run's.
"""

import argparse
import json
from pathlib import Path

from slm_jax.training.scalars import read_scalars

GOLDEN = Path(__file__).parent / "golden" / "mini_train.json"
# Losses of another machine's float rounding drift apart as a run goes on; measured spread is in docs/results.md.
RELATIVE_TOLERANCE = 0.15
ABSOLUTE_TOLERANCE = 0.05


def within(recorded: float, found: float) -> bool:
  """Whether a loss is close enough to the recorded one."""
  return abs(found - recorded) <= max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * recorded)


def smoothed(lines: list[dict], width: int = 5) -> dict[int, float]:
  """Step -> mean loss over the last `width` reports, which takes out the noise of single batches."""
  losses = [line["loss"] for line in lines]
  return {
    line["step"]: sum(losses[max(0, i - width + 1) : i + 1]) / min(i + 1, width)
    for i, line in enumerate(lines)
  }


def main() -> int:
  """Compares; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model_dir", default="runs/mini")
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  curve = smoothed(read_scalars(Path(flags.model_dir) / "train.jsonl"))
  if not curve:
    print(f"{flags.model_dir} holds no train.jsonl: run `make demo` first")
    return 2
  if flags.record:
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({str(k): round(v, 4) for k, v in curve.items()}, indent=0) + "\n")
    print(f"recorded {len(curve)} points in {GOLDEN}")
    return 0
  recorded = {int(k): v for k, v in json.loads(GOLDEN.read_text()).items()}
  shared = [step for step in sorted(recorded) if step in curve]
  bad = 0
  print("  step  recorded   yours")
  for step in shared:
    good = within(recorded[step], curve[step])
    bad += not good
    print(f"{step:6d}  {recorded[step]:8.4f}  {curve[step]:8.4f}  {'ok' if good else 'OUT'}")
  print(
    f"{len(shared) - bad} of {len(shared)} points within max({ABSOLUTE_TOLERANCE}, "
    f"{RELATIVE_TOLERANCE:.0%}); {len(recorded) - len(shared)} recorded steps not reached"
  )
  return 1 if bad or not shared else 0


if __name__ == "__main__":
  raise SystemExit(main())
