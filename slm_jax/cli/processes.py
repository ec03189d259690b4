"""Flags of runs that have several processes."""

import argparse

from slm_jax.errors import UserError
from slm_jax.training.processes import ProcessesConfig


def add_flags(parser: argparse.ArgumentParser) -> None:
  """On TPU pods and clusters that JAX knows none is needed."""
  parser.add_argument("--coordinator_address", help="host:port of process 0")
  parser.add_argument("--process_count", type=int, help="processes of the run")
  parser.add_argument("--process_index", type=int, help="of this one, from 0")
  parser.add_argument(
    "--roll_call_seconds", type=float, default=60.0, help="how long to wait for the others at start"
  )


def processes_config(flags: argparse.Namespace) -> ProcessesConfig:
  """Raises UserError for flags that do not go together."""
  try:
    return ProcessesConfig(
      coordinator_address=flags.coordinator_address,
      process_count=flags.process_count,
      process_index=flags.process_index,
      roll_call_seconds=flags.roll_call_seconds,
    )
  except ValueError as error:
    raise UserError(str(error)) from error
