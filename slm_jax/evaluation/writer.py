"""Evaluation results in MODEL_DIR: every text as JSON lines, every score as one line a step."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from slm_jax.evaluation.runner import EvaluationResult, Prediction, TaskEvaluation
from slm_jax.evaluation.scores import Score
from slm_jax.paths import run_folder


def write_evaluation(
  result: EvaluationResult, model_dir: str | os.PathLike[str], step: int
) -> list[epath.Path]:
  """Writes `MODEL_DIR/inference_eval/<task>-<step>.jsonl` and `<task>-metrics.jsonl` of every task.

  A file is replaced in one move, so a kill leaves the old one or the new one. The metrics file
  keeps one line a step: evaluating a step again replaces its line. Returns the paths written.

  Raises ValueError for a task name that could not be a file name.
  """
  for task in result.tasks:
    if not re.fullmatch(r"[\w.:+-]+", task.task):
      raise ValueError(f"task name {task.task!r} must hold letters, digits and . : + - _ only")
  folder = run_folder(model_dir) / "inference_eval"
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  for task in result.tasks:
    predictions = folder / f"{task.task}-{step}.jsonl"
    write_json_lines(predictions, map(_prediction_line, task.predictions))
    metrics = folder / f"{task.task}-metrics.jsonl"
    lines = [line for line in _read_lines(metrics) if line["step"] != step]
    lines.append(metrics_line(task, step, dataclasses.asdict(result.settings)))
    write_json_lines(metrics, sorted(lines, key=lambda line: line["step"]))
    written += [predictions, metrics]
  return written


def metrics_line(task: TaskEvaluation, step: int, decoding: Mapping[str, Any]) -> dict[str, Any]:
  """One task's scores as plain JSON values: `scores[system][metric]`, percent."""
  return {
    "step": step,
    "task": task.task,
    "kind": task.kind,
    "count": len(task.predictions),
    "decoding": dict(decoding),
    "scores": _tables(task.scores),
    "rates": _tables(task.rates),
    "agreement": _table(task.agreement),
    "audio_seconds": task.audio_seconds,
    "seconds": dict(task.seconds),
    "first_batch_seconds": task.first_batch_seconds,
  }


def _tables(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Any]]:
  return {system: _table(table) for system, table in scores.items()}


def _table(scores: Mapping[str, Score]) -> dict[str, Any]:
  return {name: dataclasses.asdict(score) for name, score in scores.items()}


def write_json_lines(path: epath.Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes one JSON object a line, UTF-8, moved into place when complete."""
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with open(partial, "w", encoding="utf-8") as file:
      for line in lines:
        file.write(json_line(line))
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def json_line(value: Mapping[str, Any]) -> str:
  """One line of strict JSON; NaN and infinities, which JSON has not, are refused by ValueError.

  Readable text as UTF-8, but all in ASCII escapes where a file name is not UTF-8: such a name holds
  lone surrogates, which no UTF-8 file can.
  """
  line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
  try:
    line.encode("utf-8")
  except UnicodeEncodeError:
    return json.dumps(value, allow_nan=False) + "\n"
  return line


def finite(value: float) -> float | None:
  """A float for JSON: None where it is NaN or infinite."""
  return value if math.isfinite(value) else None


def _prediction_line(prediction: Prediction) -> dict[str, Any]:
  texts = dict(prediction.texts)
  return {
    "inputs": {
      "id": prediction.id,
      "instruction": prediction.instruction,
      "transcript": prediction.transcript,
      "language": prediction.language,
      "target_language": prediction.target_language,
      "voice": prediction.voice,
      "duration": prediction.seconds,
      "names": list(prediction.names),
    },
    "prediction": texts.pop("slm"),
    "target": prediction.target,
    "score": finite(prediction.score),
    "others": texts,
    "shuffled_with": prediction.shuffled_with,
  }


def _read_lines(path: epath.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
