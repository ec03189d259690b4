"""`slm_jax import`; the word itself is Python's."""

import argparse
import os
import sys
import time

from slm_jax.cli.main import MODES, Parser
from slm_jax.errors import UserError

EXAMPLE = "slm_jax import --source=mt5-small --output=bases/mt5_small --dtype=bfloat16"
_GB = 10**9
_SECONDS_BETWEEN_LINES = 5.0


def run(argv: list[str]) -> int:
  """Writes public weights as a folder that runs load; returns the exit status."""
  parser = Parser(
    prog="slm_jax import",
    description=MODES["import"],
    epilog=f"example:\n  {EXAMPLE}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--source", required=True, help="Hugging Face folder, or T5X checkpoint_<step> (also gs://…)"
  )
  parser.add_argument("--output", required=True, help="folder to be made")
  parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: the source's")
  parser.add_argument(
    "--tokenizer",
    help="SentencePiece model, or tokenizer.json of one; default: spiece.model or tokenizer.json of the source",
  )
  parser.add_argument(
    "--max_shard_size_gb", type=float, default=5.0, help="largest file of weights, default 5"
  )
  parser.add_argument(
    "--format",
    choices=("hf", "t5x"),
    default="hf",
    help="hf: the folder that runs load and Transformers too (default); t5x: checkpoint_<step> in it",
  )
  flags = parser.parse_args(argv)
  if not flags.max_shard_size_gb * _GB >= 1:
    raise UserError(f"--max_shard_size_gb={flags.max_shard_size_gb}: expected more than 0")
  # Nothing is computed: an accelerator, which may be busy, is left alone.
  os.environ["JAX_PLATFORMS"] = "cpu"
  from slm_jax.interop.import_folder import open_import, run_import

  job = open_import(
    flags.source,
    flags.output,
    dtype=flags.dtype,
    tokenizer=flags.tokenizer,
    layout=flags.format,
  )
  report = _Report(job.byte_count)
  run_import(job, max_shard_bytes=int(flags.max_shard_size_gb * _GB), report=report)
  model = job.model
  types = sorted({one.dtype.name for one in model.parameters.values()})
  _say(
    f"{job.output}: {job.parameter_count:,} parameters, {', '.join(types)}, "
    f"{job.byte_count / _GB:.2f} GB in {report.seconds:.0f} s"
  )
  _say(f"{model.config}")
  if job.lacks_text:
    _say(
      f"the source has no {job.lacks_text}: ids work, text does not; copy the one it was trained with "
      f"to {job.output}"
    )
  return 0


class _Report:
  """Prints how far the writing is, now and then."""

  def __init__(self, total: int):
    self._total, self._done = total, 0
    self._began = self._printed = time.monotonic()

  def __call__(self, written: int) -> None:
    self._done += written
    if time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
      self._printed = time.monotonic()
      speed = self._done / max(self.seconds, 1e-9)
      left = max(0, self._total - self._done) / speed
      _say(
        f"{self._done / _GB:.1f} of {self._total / _GB:.1f} GB, {speed / 1e6:.0f} MB/s, "
        f"{left:.0f} s left"
      )

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._began


def _say(line: str) -> None:
  print(f"[slm_jax] {line}", file=sys.stderr, flush=True)
