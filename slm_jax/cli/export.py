"""`slm_jax export`."""

import argparse
import sys
from pathlib import Path

from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = (
  'slm_jax export --checkpoint=runs/mini --output=my-adapter --instruction="Repeat the sentence."'
)


def run(argv: list[str]) -> int:
  """Writes what a run has trained as a bundle; returns the exit status."""
  parser = parser_for("export", EXAMPLE)
  parser.add_argument(
    "--checkpoint", required=True, help="MODEL_DIR (its newest checkpoint), or …/checkpoint_<step>"
  )
  parser.add_argument("--output", required=True, help="folder of the bundle, new or empty")
  parser.add_argument("--instruction", help="the bundle's own, for generate() without one")
  parser.add_argument("--transcribe_instruction", help="for transcribe()")
  parser.add_argument("--translate_instruction", help="for translate(); {target} is the language")
  parser.add_argument("--license", default="", help="of the adapter, an SPDX name: Apache-2.0")
  flags, bindings = parse(parser, argv)
  instructions = _instructions(flags)
  from etils import epath

  from slm_jax.bundle.writing import export_bundle
  from slm_jax.cli.run_folder import load_run
  from slm_jax.training.restore import PREFIX, checkpoint_folder

  path = epath.Path(flags.checkpoint)
  step = path.name.removeprefix(PREFIX)
  named = path.name.startswith(PREFIX) and step.isdigit()
  flags.model_dir = str(path.parent if named else path)
  train, recipe = load_run(flags, bindings)
  checkpoint = checkpoint_folder(flags.model_dir, int(step) if named else None)
  output = export_bundle(
    recipe,
    checkpoint,
    Path(flags.output),
    max_samples=train.train_dataset.task_feature_lengths["audio"],
    instructions=instructions,
    licence=flags.license,
  )
  size = sum(file.stat().st_size for file in output.iterdir())
  print(
    f"[slm_jax] {checkpoint.name} as a bundle of {size / 2**20:.1f} MiB: {output}", file=sys.stderr
  )
  return 0


def _instructions(flags: argparse.Namespace) -> dict[str, str]:
  given = {
    "default": flags.instruction or flags.transcribe_instruction,
    "transcribe": flags.transcribe_instruction or flags.instruction,
    "translate": flags.translate_instruction,
  }
  if flags.translate_instruction and "{target}" not in flags.translate_instruction:
    raise UserError(
      f"--translate_instruction={flags.translate_instruction!r} has no {{target}} for the language"
    )
  return {name: text for name, text in given.items() if text}
