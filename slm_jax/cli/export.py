"""`slm_jax export`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = (
  'slm_jax export --checkpoint=runs/mini --output=my-adapter --instruction="Repeat the sentence."'
)


FORMATS = {
  "bundle": "the adapter alone, with what it fits",
  "merged": "adapter and bases in one folder of safetensors",
  "hf": "the bases as Transformers loads them, the adapter as safetensors",
  "t5x": "checkpoints in T5X's layout",
  "stablehlo": "programs of declared shapes that run without this package",
  "savedmodel": "a SavedModel of declared shapes, for TensorFlow",
}


def run(argv: list[str]) -> int:
  """Writes what a run has trained, alone or with its bases; returns the exit status."""
  parser = parser_for("export", EXAMPLE)
  parser.add_argument(
    "--checkpoint", required=True, help="MODEL_DIR (its newest checkpoint), or …/checkpoint_<step>"
  )
  parser.add_argument("--output", required=True, help="folder to write, new or empty")
  parser.add_argument(
    "--format",
    choices=FORMATS,
    default="bundle",
    help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()),
  )
  for name, what in (
    ("batch_size", "rows"),
    ("prompt_length", "tokens of the instruction"),
    ("max_new_tokens", "tokens of the answer"),
  ):
    parser.add_argument(f"--{name}", type=int, help=f"stablehlo, savedmodel: {what}")
  parser.add_argument("--instruction", help="the bundle's own, for generate() without one")
  parser.add_argument("--transcribe_instruction", help="for transcribe()")
  parser.add_argument("--translate_instruction", help="for translate(); {target} is the language")
  parser.add_argument("--license", default="", help="of the adapter, an SPDX name: Apache-2.0")
  parser.add_argument(
    "--base_model",
    action="append",
    default=[],
    help="id of a base on a model hub, for the bundle's card; repeat for both: google/mt5-small",
  )
  flags, bindings = parse(parser, argv)
  instructions = _instructions(flags)
  from etils import epath

  from slm_jax.cli.run_folder import load_run
  from slm_jax.training.restore import PREFIX, checkpoint_folder

  path = epath.Path(flags.checkpoint)
  step = path.name.removeprefix(PREFIX)
  named = path.name.startswith(PREFIX) and step.isdigit()
  flags.model_dir = str(path.parent if named else path)
  train, recipe = load_run(flags, bindings)
  checkpoint = checkpoint_folder(flags.model_dir, int(step) if named else None)
  max_samples = train.train_dataset.task_feature_lengths["audio"]
  output = _export(flags, recipe, checkpoint, max_samples, instructions)
  size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
  what = "a bundle" if flags.format == "bundle" else flags.format
  print(
    f"[slm_jax] {checkpoint.name} as {what} of {size / 2**20:.1f} MiB: {output}", file=sys.stderr
  )
  return 0


def _export(
  flags: argparse.Namespace, recipe: Any, checkpoint: Any, max_samples: int, instructions: dict
) -> Path:
  output = Path(flags.output)
  given: dict[str, Any] = {"max_samples": max_samples, "instructions": instructions}
  if flags.format == "bundle":
    from slm_jax.bundle.writing import export_bundle

    given |= {"licence": flags.license, "base_models": flags.base_model}
    return export_bundle(recipe, checkpoint, output, **given)
  if flags.format == "merged":
    from slm_jax.bundle.merged import export_merged

    return export_merged(recipe, checkpoint, output, **given)
  if flags.format in ("stablehlo", "savedmodel"):
    return _export_programs(flags, recipe, checkpoint, output, given)
  from slm_jax.bundle.towers import export_t5x, export_transformers, has_transformers_class

  if flags.format == "t5x":
    return export_t5x(recipe, checkpoint, output)
  export_transformers(recipe, checkpoint, output)
  if not has_transformers_class(recipe):
    print(
      "[slm_jax] speech_encoder/ is in slm_jax's own layout: Transformers has no class for this encoder",
      file=sys.stderr,
    )
  return output


def _export_programs(
  flags: argparse.Namespace, recipe: Any, checkpoint: Any, output: Path, given: dict[str, Any]
) -> Path:
  from slm_jax.bundle.stablehlo import ExportedShapes, export_stablehlo
  from slm_jax.training.restore import load_speech_language_model

  names = ("batch_size", "prompt_length", "max_new_tokens")
  asked = {n: getattr(flags, n) for n in names if getattr(flags, n) is not None}
  try:
    shapes = ExportedShapes(**asked)
  except ValueError as error:
    raise UserError(f"slm_jax export: --{error}") from error
  step = int(checkpoint.name.rpartition("_")[2])
  model, _ = load_speech_language_model(
    recipe, flags.model_dir, step=step, max_samples=given["max_samples"]
  )
  if flags.format == "savedmodel":
    from slm_jax.bundle.savedmodel import export_savedmodel

    return export_savedmodel(model, output, shapes)
  return export_stablehlo(model, output, shapes, instructions=given["instructions"])


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
