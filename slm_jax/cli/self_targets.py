"""`slm_jax tasks self_targets NAME`: targets that the frozen LM writes from the transcripts."""

import argparse
import sys
from pathlib import Path

from slm_jax.cli.main import Parser, parse
from slm_jax.cli.output_folder import check_output_folder
from slm_jax.errors import UserError

ACTION = "self_targets"
EXAMPLE = (
  "slm_jax tasks self_targets mini_ast --module=tasks.mini --split=validation "
  "--language_model=slm_jax:mini/language_model --output=self_targets"
)


def run(argv: list[str]) -> int:
  """Writes a manifest, its audio and a card; returns the exit status."""
  flags, _ = parse(_parser(), argv)
  check_output_folder(flags.output)
  import seqio

  from slm_jax import interop
  from slm_jax.data import registry
  from slm_jax.data.provider import hide_accelerators
  from slm_jax.data.self_targets import write_self_targets
  from slm_jax.evaluation.text_answers import TextAnswers
  from slm_jax.models.generation_config import GenerationConfig
  from slm_jax.training.parameters import fingerprint
  from slm_jax.training.recipes import resolve_path

  decoding = {
    name: getattr(flags, name)
    for name in ("max_new_tokens", "num_beams", "length_penalty", "temperature", "top_k", "top_p")
  }
  hide_accelerators()
  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  task = registry.find(flags.name, flags.module)
  if not isinstance(task, seqio.Task):
    raise UserError(f"{flags.name} is a mixture; name one of its tasks")
  path = (
    flags.language_model if "://" in flags.language_model else resolve_path(flags.language_model)
  )
  language_model = interop.load_language_model(path, dtype=flags.dtype, tokenizer=flags.tokenizer)
  if language_model.tokenizer is None:
    raise UserError(f"{path} has no tokenizer; give --tokenizer=FILE.model")
  try:
    answers = TextAnswers(
      language_model,
      GenerationConfig(**decoding),
      batch_size=flags.batch_size,
      source_length=flags.source_length,
      speech_first=flags.order == "speech_first",
    )
  except ValueError as error:
    raise UserError(f"slm_jax tasks {ACTION}: {error}") from error
  settings = {
    "language_model": {
      "path": str(flags.language_model),
      "sha256": fingerprint(language_model.params),
    },
    "decoding": decoding,
    "batch_size": flags.batch_size,
    "source_length": flags.source_length,
    "order": flags.order,
  }
  card = write_self_targets(
    task,
    flags.output,
    answers,
    settings,
    splits=flags.split,
    instruction=flags.instruction,
    seed=flags.seed,
    say=lambda line: print(f"[slm_jax] {line}", file=sys.stderr, flush=True),
  )
  for split, found in card["splits"].items():
    left_out = "".join(f", {count} {reason}" for reason, count in found["skipped"].items())
    print(f"{split}: {found['examples']} of {found['records']} records{left_out}")
  print(Path(flags.output))
  return 0


def _parser() -> Parser:
  parser = Parser(
    prog=f"slm_jax tasks {ACTION}",
    description="a speech task whose targets the frozen LM writes from the transcripts",
    epilog=f"example:\n  {EXAMPLE}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("action", choices=(ACTION,), help=ACTION)
  parser.add_argument("name", help="a task with transcripts")
  parser.add_argument("--module", required=True, help="module that registers the task")
  parser.add_argument(
    "--language_model", required=True, help="folder, T5X checkpoint, or slm_jax:…"
  )
  parser.add_argument("--output", required=True, help="folder for manifests, audio and card")
  parser.add_argument("--split", action="append", default=[], help="repeatable; default all")
  parser.add_argument("--instruction", default="", help="asked instead of the task's own")
  parser.add_argument("--tokenizer", help="SentencePiece model, if not beside the LM")
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "int8"))
  parser.add_argument(
    "--order", choices=("speech_first", "instruction_first"), default="speech_first"
  )
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--source_length", type=int, default=256, help="tokens the LM reads at most")
  parser.add_argument("--max_new_tokens", type=int, default=64)
  parser.add_argument("--num_beams", type=int, default=1)
  parser.add_argument("--length_penalty", type=float, default=1.0)
  parser.add_argument("--temperature", type=float, default=0.0, help="above 0 samples")
  parser.add_argument("--top_k", type=int, default=0)
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0, help="of sampling")
  parser.add_argument("--tfds_data_dir", help="where TFDS keeps its data sets")
  parser.add_argument("--seqio_additional_cache_dirs", default="", help="comma-separated")
  return parser
