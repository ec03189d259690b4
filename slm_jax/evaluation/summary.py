"""An evaluation for people: a table on the terminal and the HTML report of the run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from rich.console import Console
from rich.table import Table

from slm_jax.audio.files import read_audio
from slm_jax.errors import UserError
from slm_jax.evaluation.report import ReportDemo, ReportSample, RunSummary, write_report
from slm_jax.evaluation.runner import SYSTEMS, EvaluationResult, SpeechExample
from slm_jax.evaluation.score_summary import listening_text
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.paths import run_folder
from slm_jax.training import parameters
from slm_jax.training.scalars import read_scalars

SAMPLES_PER_TASK = 6


def print_scores(result: EvaluationResult, name: str) -> None:
  """One row a task and metric, one column a system, and the model's interval; percent. Then who does not listen."""
  systems = [system for system in SYSTEMS if any(system in task.scores for task in result.tasks)]
  table = Table(title=f"{name}: scores, percent", padding=0)
  for column in ("task", "n", "metric", *systems, "slm, 95 %"):
    left = column in ("task", "metric")
    table.add_column(column, justify="left" if left else "right", no_wrap=column == "task")
  for task in result.tasks:
    for metric, score in task.scores["slm"].items():
      values = [task.scores.get(system, {}).get(metric) for system in systems]
      cells = ["" if value is None else f"{value.value:.1f}" for value in values]
      interval = "" if score.interval is None else "{:.1f}–{:.1f}".format(*score.interval)
      table.add_row(task.task, str(len(task.predictions)), metric, *cells, interval)
  console = Console()
  console.print(table)
  for task in result.tasks:
    if task.listening is not None and not task.listening.listens:
      found = listening_text(dataclasses.asdict(task.listening)).replace("*", "")
      console.print(f"{task.task}: {found}", style="bold red", markup=False, highlight=False)


def report_run(
  path: epath.PathLike,
  model_dir: str,
  step: int,
  model: SpeechLanguageModel,
  result: EvaluationResult,
  examples: Sequence[SpeechExample],
  answers: str | None,
) -> None:
  """Writes the HTML report of MODEL_DIR's run and its evaluation.

  Args:
    path: of the page.
    model_dir: the run; its train.jsonl and memory.json are shown where they exist.
    step: the checkpoint scored.
    model: the model scored.
    result: its evaluation.
    examples: what was evaluated, for the audio of the samples shown.
    answers: JSON lines of `slm_jax infer` to show, or None.
  """
  log = read_scalars(run_folder(model_dir) / "train.jsonl")
  memory_path = run_folder(model_dir) / "memory.json"
  memory = sum(json.loads(memory_path.read_text()).values()) if memory_path.is_file() else None
  trained = parameters.count(model.params["adapter"])
  summary = RunSummary(
    title=Path(model_dir).name,
    trained_parameters=trained,
    frozen_parameters=parameters.count(model.params) - trained,
    steps=step,
    wall_seconds=sum(sum(task.seconds.values()) for task in result.tasks) + _train_seconds(log),
    memory_bytes=memory,
    details={"MODEL_DIR": model_dir},
  )
  audio = {(example.task, example.id): example.audio for example in examples}
  samples = [
    ReportSample.of(task.task, prediction, audio[task.task, prediction.id])
    for task in result.tasks
    for prediction in _spread(task.predictions)
  ]
  demos = _demos(answers) if answers else []
  write_report(path, summary, log, result.tasks, samples, demos)


def _train_seconds(log: list[dict]) -> float:
  """Wall time of the training, from the speeds that were logged."""
  steps = [line["step"] for line in log]
  spans = zip([0, *steps], steps, strict=False)
  return sum(
    (stop - start) / line["steps_per_second"]
    for (start, stop), line in zip(spans, log, strict=True)
  )


def _spread(items: Sequence) -> list:
  """A few items from all over a sequence."""
  count = min(len(items), SAMPLES_PER_TASK)
  return [items[i * len(items) // count] for i in range(count)]


def _demos(answers: str) -> list[ReportDemo]:
  path = Path(answers)
  if not path.is_file():
    raise UserError(f"--answers={answers}: no such file; expected what slm_jax infer wrote")
  lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
  return [
    ReportDemo(
      audio_name=Path(line["inputs"]["audio"]).name,
      instruction=line["inputs"]["instruction"],
      prediction=line["prediction"],
      audio=read_audio(line["inputs"]["audio"]),
    )
    for line in lines
    if line["prediction"] is not None
  ]
