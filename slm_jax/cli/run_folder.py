"""Reads the config of a training run back from its MODEL_DIR."""

import argparse
from typing import TypeVar

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.paths import run_folder
from slm_jax.training.config import TrainConfig
from slm_jax.training.recipes import AdapterRecipe, RetrieverRecipe

_Recipe = TypeVar("_Recipe", AdapterRecipe, RetrieverRecipe)


def load_run(flags: argparse.Namespace, bindings: list[str]) -> tuple[TrainConfig, AdapterRecipe]:
  """The run in `flags.model_dir`: its config.gin, then the command line's gin files and bindings.

  Raises:
    UserError: the folder holds no run, or one that trained no adapter.
  """
  return _load(flags, bindings, AdapterRecipe, "an adapter")


def load_retriever_run(
  flags: argparse.Namespace, bindings: list[str]
) -> tuple[TrainConfig, RetrieverRecipe]:
  """As `load_run`, of a run that trained a retriever."""
  return _load(flags, bindings, RetrieverRecipe, "a retriever")


def _load(
  flags: argparse.Namespace, bindings: list[str], recipe: type[_Recipe], what: str
) -> tuple[TrainConfig, _Recipe]:
  path = run_folder(flags.model_dir) / "config.gin"
  if not path.is_file():
    raise UserError(
      f"--model_dir={flags.model_dir}: no config.gin there; expected a training run's folder"
    )
  config.load([str(path), *flags.gin_file], bindings, flags.gin_search_paths.split(","))
  run = config.build("train")
  if not isinstance(run.model, recipe):
    raise UserError(
      f"--model_dir={flags.model_dir} holds a run of {type(run.model).__name__}, not of {what}"
    )
  return run, run.model
