"""Scores anew from kept texts: no model, no audio."""

import dataclasses
import os
from typing import Any

from slm_jax.errors import UserError
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.provenance import code_version
from slm_jax.evaluation.runner import Prediction, TaskEvaluation, scored
from slm_jax.evaluation.task_scores import KIND_METRICS
from slm_jax.evaluation.writer import (
  FOLDER,
  metrics_line,
  read_metrics,
  read_predictions,
  write_metrics,
  write_summary,
)
from slm_jax.paths import run_folder


def rescore(
  model_dir: str | os.PathLike[str],
  *,
  normaliser: str | None = None,
  resampling: Resampling | None = None,
) -> list[dict[str, Any]]:
  """Replaces every score in a run's folder by what this version makes of the same texts; returns the new lines.

  Args:
    model_dir: of an evaluation.
    normaliser: None: each line's own.
    resampling: None: each line's own, or the default.

  Raises:
    UserError: no evaluation there, or texts missing.
  """
  lines = [_rescored(model_dir, line, normaliser, resampling) for line in stored_lines(model_dir)]
  for line in lines:
    write_metrics(run_folder(model_dir) / FOLDER, line)
  write_summary(model_dir)
  return lines


def stored_lines(model_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The metrics lines of a folder, of which there is one at least. Raises UserError where there is none."""
  lines = read_metrics(model_dir)
  if not lines:
    raise UserError(
      f"{model_dir} holds no evaluation ({FOLDER}/*-metrics.jsonl); evaluate it first"
    )
  return lines


def stored_texts(model_dir: str | os.PathLike[str], line: dict[str, Any]) -> tuple[Prediction, ...]:
  """The predictions behind a metrics line. Raises UserError if they are missing, too few or of an unknown kind."""
  name = f"{FOLDER}/{line['task']}-{line['step']}.jsonl"
  try:
    found = read_predictions(model_dir, line["task"], line["step"])
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{model_dir}/{name} is damaged ({error!r}); evaluate again") from error
  if len(found) != line["count"]:
    raise UserError(
      f"{model_dir}/{name} has {len(found)} texts, its scores are of {line['count']}; evaluate again"
    )
  if line["kind"] not in KIND_METRICS:
    raise UserError(f"{model_dir}: task {line['task']} is of an unknown kind {line['kind']!r}")
  return found


def normaliser_of_line(line: dict[str, Any]) -> str:
  """The id that a line's texts were compared by."""
  return line.get("provenance", {}).get("normaliser", "basic-1")


def _rescored(model_dir, line, normaliser, resampling) -> dict[str, Any]:
  normaliser = normaliser or normaliser_of_line(line)
  resampling = resampling or Resampling(**(line.get("bootstrap") or {}))
  predictions = stored_texts(model_dir, line)
  task = TaskEvaluation(
    task=line["task"],
    kind=line["kind"],
    predictions=predictions,
    audio_seconds=line["audio_seconds"],
    seconds=line["seconds"],
    first_batch_seconds=line["first_batch_seconds"],
    **scored(line["kind"], predictions, normaliser, resampling),
  )
  found = metrics_line(task, line["step"], line["decoding"])
  found["bootstrap"] = dataclasses.asdict(resampling)
  old = line.get("provenance", {})
  found["provenance"] = {**old, "normaliser": normaliser, "scored by": code_version()}
  return found
