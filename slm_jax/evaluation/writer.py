"""Evaluation results in a run's folder: texts as JSON lines, scores as one line a step, and what sums them up."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.provenance import Provenance, prompts
from slm_jax.evaluation.runner import EvaluationResult, Prediction, TaskEvaluation
from slm_jax.evaluation.score_summary import markdown
from slm_jax.evaluation.scores import Score
from slm_jax.evaluation.whole_file import write_whole
from slm_jax.paths import run_folder

FOLDER = "inference_eval"
_METRICS = "-metrics.jsonl"


def write_evaluation(
  result: EvaluationResult,
  model_dir: str | os.PathLike[str],
  step: int,
  provenance: Provenance | None = None,
  resampling: Resampling | None = None,
) -> list[epath.Path]:
  """Writes `MODEL_DIR/inference_eval/<task>-<step>.jsonl` and `<task>-metrics.jsonl`, eval.json and eval.md.

  A file is replaced in one move, so a kill leaves the old one or the new one. The metrics file
  keeps one line a step: evaluating a step again replaces its line. eval.json and eval.md hold every line of the
  folder. Returns the paths written.

  Raises ValueError for a task name that could not be a file name.
  """
  for task in result.tasks:
    if not re.fullmatch(r"[\w.:+-]+", task.task):
      raise ValueError(f"task name {task.task!r} must hold letters, digits and . : + - _ only")
  folder = run_folder(model_dir) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  for task in result.tasks:
    predictions = folder / f"{task.task}-{step}.jsonl"
    write_json_lines(predictions, map(_prediction_line, task.predictions))
    line = metrics_line(task, step, dataclasses.asdict(result.settings))
    line["bootstrap"] = None if resampling is None else dataclasses.asdict(resampling)
    if provenance is not None:
      line["provenance"] = _provenance(provenance, task)
    written += [predictions, write_metrics(folder, line)]
  return [*written, *write_summary(model_dir)]


def write_metrics(folder: epath.Path, line: Mapping[str, Any]) -> epath.Path:
  """Puts one task's line of one step in the place of the old one; returns the file."""
  path = folder / f"{line['task']}{_METRICS}"
  lines = [old for old in read_json_lines(path) if old["step"] != line["step"]]
  write_json_lines(path, sorted([*lines, line], key=lambda line: line["step"]))
  return path


def read_metrics(model_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Every metrics line of a run's folder, by step and task."""
  folder = run_folder(model_dir) / FOLDER
  lines = [line for path in folder.glob(f"*{_METRICS}") for line in read_json_lines(path)]
  return sorted(lines, key=lambda line: (line["step"], line["task"]))


def write_summary(model_dir: str | os.PathLike[str]) -> list[epath.Path]:
  """Writes MODEL_DIR/eval.json and eval.md, all scores there are; returns the paths."""
  lines = read_metrics(model_dir)
  paths = [run_folder(model_dir) / name for name in ("eval.json", "eval.md")]
  write_whole(paths[0], _indented({"evaluations": lines}))
  write_whole(paths[1], markdown(lines).encode("utf-8", "replace"))
  return paths


def read_predictions(
  model_dir: str | os.PathLike[str], task: str, step: int
) -> tuple[Prediction, ...]:
  """What every system said, as it was written."""
  path = run_folder(model_dir) / FOLDER / f"{task}-{step}.jsonl"
  return tuple(map(_prediction, read_json_lines(path)))


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
    "listening": None if task.listening is None else dataclasses.asdict(task.listening),
    "audio_seconds": task.audio_seconds,
    "seconds": dict(task.seconds),
    "first_batch_seconds": task.first_batch_seconds,
  }


def _indented(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")


def _provenance(provenance: Provenance, task: TaskEvaluation) -> dict[str, Any]:
  return {
    "prompts": prompts([prediction.instruction for prediction in task.predictions]),
    "data": provenance.data.get(task.task, {}),
    "code": provenance.code,
    "model": provenance.model,
    "normaliser": provenance.normaliser,
  }


def _tables(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Any]]:
  return {system: _table(table) for system, table in scores.items()}


def _table(scores: Mapping[str, Score]) -> dict[str, Any]:
  return {name: dataclasses.asdict(score) for name, score in scores.items()}


def write_json_lines(path: str | os.PathLike[str], lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes one JSON object a line, UTF-8, moved into place when complete."""
  write_whole(path, "".join(map(json_line, lines)).encode())


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


def _prediction(line: Mapping[str, Any]) -> Prediction:
  """The inverse of `_prediction_line`; older lines have no names."""
  inputs = dict(line["inputs"])
  score = line["score"]
  return Prediction(
    seconds=inputs.pop("duration"),
    names=tuple(inputs.pop("names", ())),
    **inputs,
    target=line["target"],
    score=math.nan if score is None else score,
    texts={"slm": line["prediction"], **line["others"]},
    shuffled_with=line["shuffled_with"],
  )


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
  """The lines of a file, none if it is not there."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
