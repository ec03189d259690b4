"""`slm_jax retrieve`."""

import json
import sys
from pathlib import Path

from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = (
  "slm_jax retrieve --model_dir=runs/mini_retriever --entities=names.txt --audio=a.wav "
  "--k=10 --instruction='Transcribe this. Names may be {entities}.' > requests.jsonl"
)


def run(argv: list[str]) -> int:
  """Prints the entities of a list that audio files name, or instructions with them; returns the exit status."""
  parser = parser_for("retrieve", EXAMPLE)
  parser.add_argument("--model_dir", required=True, help="folder of a retriever's training run")
  parser.add_argument("--step", type=int, help="checkpoint; default: the newest")
  parser.add_argument("--entities", required=True, help="text file, one entity a line")
  parser.add_argument("--audio", action="append", default=[], help="repeatable; any rate, channels")
  parser.add_argument("--k", type=int, default=10, help="entities of each file")
  parser.add_argument(
    "--instruction",
    help="{entities} stands for them: the lines printed are requests of slm_jax infer --requests",
  )
  flags, bindings = parse(parser, argv)
  from slm_jax.audio.files import read_audio
  from slm_jax.cli.run_folder import load_retriever_run
  from slm_jax.entities import read_entities
  from slm_jax.retrieval import load_retriever

  if not flags.audio:
    raise UserError("no audio to listen to; give --audio=FILE (repeatable)")
  if flags.k < 1:
    raise UserError(f"--k={flags.k}: expected at least 1")
  if flags.instruction is not None and "{entities}" not in flags.instruction:
    raise UserError(f"--instruction={flags.instruction!r} has no {{entities}} to put the list in")
  entities = read_entities(flags.entities)
  train_config, recipe = load_retriever_run(flags, bindings)
  retriever, step = load_retriever(
    recipe,
    flags.model_dir,
    step=flags.step,
    max_samples=train_config.train_dataset.task_feature_lengths["audio"],
    batch_size=min(16, len(flags.audio)),
  )
  recordings = [read_audio(path) for path in flags.audio]
  found = retriever.retrieve(recordings, retriever.index(entities), flags.k)
  for path, best in zip(flags.audio, found, strict=True):
    line: dict = {"audio": path}
    if flags.instruction is None:
      line["entities"] = [{"text": text, "score": round(score, 4)} for text, score in best]
    else:
      names = ", ".join(text for text, _ in best)
      line["audio"] = str(Path(path).resolve())
      line["instruction"] = flags.instruction.replace("{entities}", names)
    print(json.dumps(line, ensure_ascii=False))
  print(f"[slm_jax] {len(entities)} entities, checkpoint_{step}", file=sys.stderr)
  return 0
