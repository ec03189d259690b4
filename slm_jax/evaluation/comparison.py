"""Several evaluations side by side: each one's scores, and how it differs from the first on the same examples."""

import dataclasses
import json
import os
from collections.abc import Sequence
from html import escape
from typing import Any

from etils import epath

from slm_jax.errors import UserError
from slm_jax.evaluation.bootstrap import Resampling, paired_difference
from slm_jax.evaluation.html_page import write_page
from slm_jax.evaluation.rescoring import normaliser_of_line, stored_lines, stored_texts
from slm_jax.evaluation.runner import Prediction
from slm_jax.evaluation.score_names import METRIC_NAMES
from slm_jax.evaluation.score_plot import score_plot_svg
from slm_jax.evaluation.score_summary import with_interval
from slm_jax.evaluation.scores import Score, score_of
from slm_jax.evaluation.task_scores import metric_statistics, metrics_of, target_languages
from slm_jax.evaluation.whole_file import write_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """One evaluation: of a folder's newest step if `step` is None."""

  name: str
  folder: str | os.PathLike[str]
  step: int | None = None


def compare(
  entries: Sequence[Entry], *, normaliser: str | None = None, resampling: Resampling | None = None
) -> dict[str, Any]:
  """What `write_comparison` writes: tasks → metric → one cell for each entry, None where it lacks the task.

  A cell has the model's score, and `difference` to the first entry that has the task: value, interval and p of
  a paired bootstrap over the examples that both have (by id and instruction), None if there are none.

  Args:
    entries: two at least, of different names.
    normaliser: None: that of the first entry.
    resampling: of all intervals.

  Raises:
    UserError: fewer than two, a name twice, or no evaluation in a folder.
  """
  if len(entries) < 2 or len({entry.name for entry in entries}) < len(entries):
    raise UserError(
      f"a comparison needs two evaluations of different names, not {[e.name for e in entries]}; name them NAME=DIR"
    )
  resampling = resampling or Resampling()
  found = [_lines(entry) for entry in entries]
  normaliser = normaliser or normaliser_of_line(found[0][0])
  tasks = list(dict.fromkeys(line["task"] for lines in found for line in lines))
  table = {}
  for task in tasks:
    lines = [next((x for x in lines if x["task"] == task), None) for lines in found]
    texts = [
      None if line is None else stored_texts(entry.folder, line)
      for entry, line in zip(entries, lines, strict=True)
    ]
    kind = next(line["kind"] for line in lines if line is not None)
    table[task] = _compared(kind, texts, normaliser, resampling)
  return {
    "entries": [
      {
        "name": entry.name,
        "folder": str(entry.folder),
        "step": lines[0]["step"],
        "model": lines[0].get("provenance", {}).get("model", {}),
      }
      for entry, lines in zip(entries, found, strict=True)
    ],
    "normaliser": normaliser,
    "bootstrap": dataclasses.asdict(resampling),
    "tasks": table,
  }


def write_comparison(path: str | os.PathLike[str], comparison: dict[str, Any]) -> list[epath.Path]:
  """Writes a comparison as HTML at `path`, and beside it as .json and .md; returns the paths."""
  page = epath.Path(path)
  paths = [page.with_suffix(suffix) for suffix in (".json", ".md")]
  write_whole(paths[0], (json.dumps(comparison, indent=1, allow_nan=False) + "\n").encode())
  write_whole(paths[1], _markdown(comparison).encode("utf-8", "replace"))
  names = [entry["name"] for entry in comparison["entries"]]
  cards = [_card(task, table, names) for task, table in comparison["tasks"].items()]
  write_page(page, "Comparison", [_header(comparison), *cards])
  return [*paths, page]


def _lines(entry: Entry) -> list[dict[str, Any]]:
  lines = stored_lines(entry.folder)
  steps = sorted({line["step"] for line in lines})
  step = steps[-1] if entry.step is None else entry.step
  if step not in steps:
    raise UserError(f"{entry.folder} has no evaluation of step {step}; it has those of {steps}")
  return [line for line in lines if line["step"] == step]


def _compared(
  kind: str,
  texts: Sequence[tuple[Prediction, ...] | None],
  normaliser: str,
  resampling: Resampling,
) -> dict[str, list[dict[str, Any] | None]]:
  first = next(predictions for predictions in texts if predictions is not None)
  table: dict[str, list[dict[str, Any] | None]] = {}
  for metric in metrics_of(kind, first):
    cells: list[dict[str, Any] | None] = []
    for predictions in texts:
      if predictions is None or metric not in metrics_of(kind, predictions):
        cells.append(None)
        continue
      own = [prediction.texts["slm"] for prediction in predictions]
      statistics = metric_statistics(metric, predictions, own, normaliser)
      score = score_of(statistics, target_languages(predictions), resampling)
      difference = None
      if predictions is not first:
        difference = _difference(metric, predictions, first, normaliser, resampling)
      cells.append({**dataclasses.asdict(score), "difference": difference})
    table[metric] = cells
  return table


def _difference(metric, predictions, first, normaliser, resampling) -> dict[str, Any] | None:
  """Over the examples that both have; one that stands several times in a set counts once."""
  places = {_key(prediction): prediction for prediction in first}
  own = {_key(prediction): prediction for prediction in predictions}
  shared = [key for key in own if key in places]
  if not shared:
    return None
  pair = [
    metric_statistics(metric, rows, [row.texts["slm"] for row in rows], normaliser)
    for rows in ([own[key] for key in shared], [places[key] for key in shared])
  ]
  found = paired_difference(pair[0], pair[1], resampling)
  return {**dataclasses.asdict(found), "count": len(shared), "significant": found.significant}


def _key(prediction: Prediction) -> tuple[str, str, str]:
  return prediction.id, prediction.instruction, prediction.target


def _cells(cell: dict[str, Any] | None) -> str:
  if cell is None:
    return "–"
  text, difference = with_interval(cell), cell["difference"]
  if difference is None:
    return text
  sign = "*" if difference["significant"] else ""
  return f"{text}, {difference['value']:+.1f}{sign}"


_LEGEND = (
  "Percent, with 95 % bootstrap intervals; then the difference to the first, * where its interval leaves 0 out (paired "
  "bootstrap over the same examples)."
)


def _markdown(comparison: dict[str, Any]) -> str:
  names = [entry["name"] for entry in comparison["entries"]]
  parts = ["# Comparison", "", _LEGEND, ""]
  for task, table in comparison["tasks"].items():
    parts += [f"## {task}", "", f"| metric | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    parts += [
      f"| {METRIC_NAMES[metric]} | {' | '.join(map(_cells, cells))} |"
      for metric, cells in table.items()
    ]
    parts.append("")
  parts += [
    f"- {entry['name']}: `{entry['folder']}`, step {entry['step']}"
    for entry in comparison["entries"]
  ]
  return "\n".join(parts) + "\n"


def _header(comparison: dict[str, Any]) -> str:
  items = "".join(
    f"<dt>{escape(entry['name'])}</dt><dd>{escape(entry['folder'])}, step {entry['step']}</dd>"
    for entry in comparison["entries"]
  )
  return (
    '<header><div class="eyebrow">slm_jax evaluation</div><h1>Comparison</h1>'
    f'<p class="soft">{_LEGEND}</p></header>\n<section class="card"><dl>{items}</dl></section>\n'
  )


def _card(task: str, table: dict[str, list], names: list[str]) -> str:
  metric, cells = next(iter(table.items()))
  rows = [
    (name, Score(**{k: v for k, v in cell.items() if k != "difference"}))
    for name, cell in zip(names, cells, strict=True)
    if cell is not None
  ]
  heads = "".join(f"<th>{escape(name)}</th>" for name in names)
  body = "".join(
    f"<tr><td>{METRIC_NAMES[name]}</td>"
    + "".join(f"<td>{escape(_cells(cell))}</td>" for cell in row)
    + "</tr>"
    for name, row in table.items()
  )
  return (
    f'<h2>{escape(task)}</h2>\n<section class="card">{score_plot_svg(rows, label=METRIC_NAMES[metric])}'
    f'<div class="scroll"><table><thead><tr><th>metric</th>{heads}</tr></thead>'
    f"<tbody>{body}</tbody></table></div></section>\n"
  )
