"""The study's tables and pictures, from the texts that are there: study.md, study.json and PNGs in its folder."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.study import conditions
from benchmarks.study.runs import RUNS, StudyRun
from benchmarks.study.scoring import Measured, measured, metrics_of
from slm_jax.evaluation.statistics import ERROR_METRICS

SEEDS = tuple(run for run in RUNS if run.group == "seeds")
BASE_SYSTEMS = ("ctc", "cascade", "oracle")
_OTHERS = ("cascade", "oracle", "ctc", "shuffled", "silenced")
_COLOURS = {"slm": "#2a6f97", "cascade": "#c98b3c", "oracle": "#8a8a8a"}


def write_report(folder: Path) -> Path:
  """Writes what can be written; returns the page."""
  texts = [folder / run.name / "texts" for run in SEEDS]
  texts = [path for path in texts if path.is_dir()]
  headline = _headline(folder, texts)
  groups = {run.group: None for run in RUNS if run.group != "seeds"}
  rows = {group: _compared(folder, group) for group in groups}
  sections = [_headline_table(headline, len(texts)), _names_table(headline), _probe_table(folder)]
  sections += [_group_table(group, found) for group, found in rows.items() if len(found) > 1]
  page = folder / "study.md"
  page.write_text("\n\n".join(sections) + "\n", "utf-8")
  record = {"headline": headline, "compared": rows}
  (folder / "study.json").write_text(json.dumps(record, default=dataclasses.asdict, indent=1))
  _draw_headline(headline, folder / "study_headline.png")
  _draw_names(headline, folder / "study_names.png")
  return page


def _headline(folder: Path, texts: Sequence[Path]) -> dict[str, dict[str, Measured]]:
  """ "condition metric" → system → score."""
  found: dict[str, dict[str, Measured]] = {}
  names = [name for name, _, _ in conditions.names_conditions()]
  for condition in (*conditions.TASKS, *names):
    for metric in metrics_of(condition):
      row = {s: measured([folder / "bases"], s, condition, metric) for s in BASE_SYSTEMS}
      row |= {s: measured(texts, s, condition, metric) for s in ("slm", "shuffled", "silenced")}
      found[f"{condition} {metric}"] = {system: m for system, m in row.items() if m is not None}
  return found


def _compared(folder: Path, group: str) -> list[tuple[str, dict[str, Measured]]]:
  """(label, condition → score) of the first seed and of the group's runs that have been asked."""
  found = []
  for run in (SEEDS[0], *(run for run in RUNS if run.group == group)):
    row = {c: _one(folder, run, c) for c in conditions.SHORT}
    row = {condition: m for condition, m in row.items() if m is not None}
    if row:
      found.append(("as the headline" if run is SEEDS[0] else run.label, row))
  return found


def _one(folder: Path, run: StudyRun, condition: str) -> Measured | None:
  return measured([folder / run.name / "texts"], "slm", condition, metrics_of(condition)[0])


def _headline_table(headline: dict, num_seeds: int) -> str:
  rows = []
  for name, row in headline.items():
    if name.startswith("names") or "slm" not in row:
      continue
    slm, oracle = row["slm"], row.get("oracle")
    share = (
      f"{100 * slm.value / oracle.value:.0f} %"
      if oracle and slm.metric not in ERROR_METRICS
      else ""
    )
    each = " / ".join(f"{value:.1f}" for value in slm.values)
    rows.append((name, _full(slm), each, share, *(_plain(row.get(s)) for s in _OTHERS)))
  columns = (
    "condition, metric",
    f"SLM, {num_seeds} seeds together",
    "each seed",
    "of the oracle",
    *_OTHERS,
  )
  return _table(columns, rows)


def _probe_table(folder: Path) -> str:
  """Of an adapter that listens and of one that was trained deaf: the right audio / another one / silence."""
  rows = []
  for run in (SEEDS[0], *(run for run in RUNS if run.group == "probe")):
    cells = []
    for condition in conditions.PROBED:
      metric = metrics_of(condition)[0]
      texts = [folder / run.name / "texts"]
      found = (measured(texts, s, condition, metric) for s in ("slm", "shuffled", "silenced"))
      cells.append(" / ".join(_plain(one) or "–" for one in found))
    rows.append((run.label, *cells))
  return _table(("right / wrong audio / silence", *conditions.PROBED), rows)


def _names_table(headline: dict) -> str:
  rows = []
  for name, _, _ in conditions.names_conditions():
    biased, words = (headline.get(f"{name} {metric}", {}) for metric in ("b_wer", "wer"))
    if "slm" in biased:
      cells = [_plain(biased.get(s)) for s in ("cascade", "oracle")]
      rows.append((name, _full(biased["slm"]), _full(words["slm"]), *cells))
  return _table(("list", "SLM, B-WER", "SLM, WER", "cascade, B-WER", "oracle, B-WER"), rows)


def _group_table(group: str, found: list[tuple[str, dict[str, Measured]]]) -> str:
  columns = (group, *(f"{c}, {metrics_of(c)[0]}" for c in conditions.SHORT))
  return _table(
    columns, [(label, *(_full(row.get(c)) for c in conditions.SHORT)) for label, row in found]
  )


def _full(score: Measured | None) -> str:
  return "" if score is None else f"{score.value:.1f} ({score.low:.1f}–{score.high:.1f})"


def _plain(score: Measured | None) -> str:
  return "" if score is None else f"{score.value:.1f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
  return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _draw_headline(headline: dict, path: Path) -> None:
  """Answers that are right, as far as the LM can answer the text: bars with intervals."""
  names = [
    n
    for n in headline
    if not n.startswith("names") and not n.endswith("wer") and "slm" in headline[n]
  ]
  if not names:
    return
  figure = Figure(figsize=(9, 3.6), layout="constrained")
  axes = figure.add_subplot()
  for offset, (system, colour) in zip((-0.27, 0, 0.27), _COLOURS.items(), strict=True):
    scores = [headline[name].get(system) for name in names]
    at = [i + offset for i, score in enumerate(scores) if score is not None]
    known = [score for score in scores if score is not None]
    error = [[s.value - s.low for s in known], [s.high - s.value for s in known]]
    bars = {"color": colour, "label": system, "yerr": error, "error_kw": {"lw": 0.8}}
    axes.bar(at, [s.value for s in known], 0.26, **bars)
  axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=8)
  axes.set_ylabel("percent")
  axes.legend(frameon=False, ncols=3, loc="upper right")
  axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=110)


def _draw_names(headline: dict, path: Path) -> None:
  """Errors on names by the length of the list, with the right names in it and without."""
  without = headline.get("names_none b_wer", {}).get("slm")
  if without is None:
    return
  figure = Figure(figsize=(5.5, 3.4), layout="constrained")
  axes = figure.add_subplot()
  axes.axhline(without.value, color="#8a8a8a", ls="--", lw=1, label="no list")
  for suffix, label, colour in (
    ("", "names listed", "#2a6f97"),
    ("_anti", "others alone", "#b5473c"),
  ):
    scores = [
      headline.get(f"names_{n}{suffix} b_wer", {}).get("slm") for n in conditions.LIST_LENGTHS
    ]
    points = [(n, s) for n, s in zip(conditions.LIST_LENGTHS, scores, strict=True) if s is not None]
    error = [[s.value - s.low for _, s in points], [s.high - s.value for _, s in points]]
    style = {"color": colour, "marker": "o", "ms": 4, "label": label, "capsize": 2}
    axes.errorbar([n for n, _ in points], [s.value for _, s in points], error, **style)
  axes.set_xscale("log")
  axes.set_xticks(conditions.LIST_LENGTHS, [str(n) for n in conditions.LIST_LENGTHS])
  axes.set_xlabel("distractors in the list")
  axes.set_ylabel("B-WER, percent")
  axes.set_ylim(bottom=0)
  axes.legend(frameon=False)
  axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=110)
