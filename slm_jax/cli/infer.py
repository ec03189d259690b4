"""`slm_jax infer`."""

import sys
from pathlib import Path

from slm_jax.cli import infer_ctc
from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = (
  'slm_jax infer --model_dir=runs/mini --audio=a.wav --instruction="Transcribe this." '
  "--output=answers.jsonl"
)


def _step(text: str) -> int | str:
  return text if text == "best" else int(text)


def run(argv: list[str]) -> int:
  """Answers instructions about audio files; returns the exit status."""
  if "--ctc" in argv:
    return infer_ctc.run(argv)
  parser = parser_for("infer", EXAMPLE)
  parser.add_argument(
    "--ctc", action="store_true", help="a speech encoder alone: slm_jax infer --ctc --help"
  )
  parser.add_argument("--model_dir", required=True, help="folder of a training run")
  parser.add_argument("--step", type=_step, help="checkpoint, or `best`; default: the newest")
  parser.add_argument(
    "--audio", action="append", default=[], help="repeatable; any rate and channels"
  )
  parser.add_argument("--instruction", action="append", default=[], help="repeatable")
  parser.add_argument("--requests", help='JSON lines {"audio": …, "instruction": …}')
  parser.add_argument("--output", required=True, help="JSON lines are written here")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--num_beams", type=int, default=1)
  parser.add_argument("--max_new_tokens", type=int, default=64)
  parser.add_argument("--max_bad_audio", type=int, default=0, help="bad files that may be skipped")
  flags, bindings = parse(parser, argv)
  from slm_jax import inference
  from slm_jax.cli.run_folder import load_run
  from slm_jax.evaluation.generation import GenerationSettings
  from slm_jax.training.restore import load_speech_language_model
  from slm_jax.training.sharding import mesh_of_several

  if bool(flags.requests) == bool(flags.audio or flags.instruction):
    raise UserError("give either --requests=FILE.jsonl or --audio=… with --instruction=…")
  if flags.requests:
    requests = inference.read_requests(flags.requests)
  else:
    requests = inference.requests_from_flags(flags.audio, flags.instruction)
  try:
    settings = GenerationSettings(
      batch_size=flags.batch_size,
      num_beams=flags.num_beams,
      max_new_tokens=flags.max_new_tokens,
    )
  except ValueError as error:
    raise UserError(f"slm_jax infer: {error}") from error
  train_config, recipe = load_run(flags, bindings)
  model, step = load_speech_language_model(
    recipe,
    flags.model_dir,
    step=flags.step,
    max_samples=train_config.train_dataset.task_feature_lengths["audio"],
    mesh=mesh_of_several(train_config.mesh),
  )
  summary = inference.infer(
    model, requests, flags.output, settings, max_bad_audio=flags.max_bad_audio
  )
  if flags.audio:
    print(Path(flags.output).read_text("utf-8"), end="")
  print(
    f"[slm_jax] {summary.requests} requests, {summary.bad_audio} skipped, {summary.audio_seconds:.1f} s of audio in "
    f"{summary.seconds:.1f} s, checkpoint_{step}; answers: {flags.output}",
    file=sys.stderr,
  )
  return 0
