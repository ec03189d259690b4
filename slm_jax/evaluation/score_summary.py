"""Scores as Markdown, from the lines of the metrics files."""

from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax.evaluation.score_names import METRIC_NAMES, SYSTEM_NAMES

Line = Mapping[str, Any]


def markdown(lines: Sequence[Line]) -> str:
  """A section for each step and task: scores with intervals, behaviour, the verdict, where it all comes from."""
  parts = ["# Evaluation", "", "Percent; in brackets 95 % bootstrap intervals.", ""]
  for line in lines:
    parts += [f"## {line['task']}, step {line['step']} ({line['count']} examples)", ""]
    parts += score_table(line["scores"])
    if any(line.get("rates", {}).values()):
      parts += ["Behaviour:", "", *score_table(line["rates"])]
    parts += [*_agreement(line), *_listening(line), *_provenance(line)]
  return "\n".join(parts).rstrip() + "\n"


def score_table(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Systems by metrics."""
  metrics = list(dict.fromkeys(metric for table in tables.values() for metric in table))
  rows = [
    "| system | " + " | ".join(METRIC_NAMES[metric] for metric in metrics) + " |",
    "|---|" + "---|" * len(metrics),
  ]
  for system, table in tables.items():
    cells = (with_interval(table[m]) if m in table else "" for m in metrics)
    rows.append(f"| {SYSTEM_NAMES[system]} | " + " | ".join(cells) + " |")
  return [*rows, ""]


def with_interval(score: Mapping[str, Any]) -> str:
  """A score of a metrics line: 3.2 [2.1, 4.4]."""
  interval = score.get("interval")
  text = f"{score['value']:.1f}"
  return text if interval is None else f"{text} [{interval[0]:.1f}, {interval[1]:.1f}]"


def _agreement(line: Line) -> list[str]:
  found = line.get("agreement") or {}
  if not found:
    return []
  shown = ", ".join(f"{METRIC_NAMES[n]} {with_interval(score)}" for n, score in found.items())
  return [f"The SLM's texts against the text oracle's: {shown}.", ""]


def _listening(line: Line) -> list[str]:
  found = line.get("listening")
  return [listening_text(found), ""] if found else []


def listening_text(found: Mapping[str, Any]) -> str:
  """The verdict as a sentence."""
  low, high = found["interval"]
  verdict = "It listens" if found["listens"] else "**It does not listen**"
  return (
    f"{verdict}: {METRIC_NAMES[found['metric']]} {found['slm']:.1f} on the right recording, "
    f"{found['shuffled']:.1f} on another one; better by {found['gain']:.1f} [{low:.1f}, {high:.1f}]."
  )


def _provenance(line: Line) -> list[str]:
  scores = next(iter(line["scores"].values()))
  methods = ", ".join(
    f"{METRIC_NAMES[n]} `{score['signature'] or score['normaliser']}`"
    for n, score in scores.items()
  )
  found = line.get("provenance", {})
  rows = {
    "method": methods,
    "decoding": _pairs(line["decoding"]),
    **{name: _pairs(found[name]) for name in ("model", "code", "data") if name in found},
  }
  if "prompts" in found:
    rows["prompts"] = (
      f"{found['prompts']['count']} wordings, sha256 `{found['prompts']['sha256'][:16]}`"
    )
  return [*(f"- {name}: {text}" for name, text in rows.items()), ""]


def _pairs(values: Mapping[str, Any]) -> str:
  return ", ".join(f"{name} `{value}`" for name, value in values.items())
