"""Where the time of the step of `benchmarks/slm.py` goes, by model part and kind of operation.

  python benchmarks/profile_step.py --output=profile.json

Printed is JSON, and to stderr the same as a table: seconds, share of the time in which operations ran, and for products
their speed beside that of one large product, measured before and after in the same process. An instant in which
threads run different operations is divided among them. `traced_seconds` beside `seconds` tells what the trace costs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import op_profile
import slm

# Paths as Flax and JAX write them; the first pattern that fits counts.
PARTS = {
  "frontend": r"speech_encoder\.features",
  "encoder: attention of one head": r"speech_encoder/.*/attention/cond",
  "encoder: attention projections": r"speech_encoder/.*/attention/",
  "encoder: depthwise convolution": r"speech_encoder/.*/depthwise",
  "encoder: convolution module": r"speech_encoder/.*/conv/(?!norm|conv_norm)",
  "encoder: feed-forward": r"speech_encoder/.*/ffn_(in|out)/",
  "encoder: norms": r"speech_encoder/.*norm",
  "encoder: rest": r"speech_encoder",
  "adapter": r"adapter",
  "LM encoder": r"language_model\.encode",
  "LM decoder": r"language_model\.decode",
  "LM embedding": r"language_model\.embed|SLM\.join_inputs",
  "logits and loss": r"jvp\(",
  "optimiser": r"^jit\(step\)",
}


def seconds_of(run) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--output", help="the JSON goes here too")
  flags = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")  # whose traces are read
  matrix = np.random.default_rng(1).normal(size=(slm.MATMUL_SIZE,) * 2).astype(np.float32)
  with tempfile.TemporaryDirectory() as flags.folder:
    slm.make_weights(flags.folder)
    ours = slm.Ours(flags)
  ours.step()  # compiles
  (compiled,) = ours.train_step.programs
  hlo = compiled.as_text()
  assert hlo is not None, "programs of a CPU have a text"
  program = op_profile.operations(hlo)
  ours.matmul(matrix)
  matmuls = [seconds_of(lambda: ours.matmul(matrix)) for _ in range(flags.rounds)]
  steps = [seconds_of(ours.step) for _ in range(flags.rounds)]
  events: list[op_profile.Event] = []
  traced = seconds_of(lambda: events.extend(op_profile.trace(ours.step, "jit_step")))
  matmuls += [seconds_of(lambda: ours.matmul(matrix)) for _ in range(flags.rounds)]
  ceiling = 2e-9 * slm.MATMUL_SIZE**3 / statistics.median(matmuls)
  rows = op_profile.profile(events, program, PARTS)
  found = {
    "matmul_gflop_per_second": round(ceiling, 1),
    "seconds": round(statistics.median(steps), 3),
    "traced_seconds": round(traced, 3),
    "operations_seconds": round(sum(row["seconds"] for row in rows), 3),
    "profile": rows,
  }
  print(op_profile.table(rows, ceiling), file=sys.stderr)
  text = json.dumps(found, indent=2)
  print(text)
  if flags.output:
    Path(flags.output).write_text(text + "\n")


if __name__ == "__main__":
  main()
