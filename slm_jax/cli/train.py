"""`slm_jax train`."""

import argparse

from slm_jax.cli import processes
from slm_jax.cli.main import parse, parser_for
from slm_jax.training.preemption import nothing_to_save

EXAMPLE = "slm_jax train --gin_file=experiments/mini.gin --gin.MODEL_DIR=\"'runs/mini'\""


def run(argv: list[str]) -> int:
  """Trains; returns the exit status."""
  parser = parser_for("train", EXAMPLE)
  parser.add_argument("--dry_run", action="store_true", help="check the config and stop")
  parser.add_argument(
    "--stopped_status",
    type=int,
    default=0,
    help="exit status when SIGTERM stopped the run before its last step; a scheduler needs one of its own",
  )
  processes.add_flags(parser)
  flags, bindings = parse(parser, argv)
  with nothing_to_save(flags.stopped_status):
    return _train(flags, bindings)


def _train(flags: argparse.Namespace, bindings: list[str]) -> int:
  where = processes.processes_config(flags)
  from slm_jax import config
  from slm_jax.cli.batches import open_batches, open_held_out
  from slm_jax.training.loop import train
  from slm_jax.training.processes import joined

  config.load(flags.gin_file, bindings, flags.gin_search_paths.split(","))
  run_config = config.build("train")
  if flags.dry_run:
    print(config.operative())
    return 0
  with joined(where) as run_processes:
    result = train(
      run_config,
      open_batches(run_config, flags, run_processes),
      held_out=open_held_out(run_config, flags, run_processes),
      run_text=config.operative(),
      processes=run_processes,
    )
  return 0 if result.finished else flags.stopped_status
