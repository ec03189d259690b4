"""The sections of a report that hold scores: findings, tables and plots."""

from collections.abc import Iterable, Sequence
from html import escape

from slm_jax.evaluation.runner import TaskEvaluation
from slm_jax.evaluation.score_names import METRIC_NAMES, SYSTEM_NAMES
from slm_jax.evaluation.score_plot import score_plot_svg
from slm_jax.evaluation.scores import Score
from slm_jax.evaluation.statistics import ERROR_METRICS
from slm_jax.evaluation.task_scores import KIND_METRICS


def findings(evaluations: Sequence[TaskEvaluation]) -> str:
  """The run's claims, each as a sentence with its numbers and whether it holds."""
  lines = []
  for task in evaluations:
    metric = KIND_METRICS[task.kind][0]
    values = {system: scores[metric].value for system, scores in task.scores.items()}
    name, label = escape(task.task), METRIC_NAMES[metric]
    slm = values["slm"]
    if "ctc" in values:
      lines.append(
        (
          slm <= values["ctc"],
          f"{name}: {label} {slm:.1f} against {values['ctc']:.1f} of the speech encoder's CTC",
        )
      )
    elif values.get("oracle") and metric not in ERROR_METRICS:
      percent = 100 * slm / values["oracle"]
      lines.append(
        (
          percent >= 90,
          f"{name}: {label} {slm:.1f}, {percent:.1f} % of the text oracle's {values['oracle']:.1f}",
        )
      )
    if task.listening is not None:
      low, high = task.listening.interval
      lines.append(
        (
          task.listening.listens,
          f"{name}, is it listening? {label} {values['shuffled']:.1f} on another recording, "
          f"{_points(task.listening.gain)} worse (95 %: {_points(low)} to {_points(high)})",
        )
      )
  if not lines:
    return ""
  items = "".join(
    f'<li><span class="badge {"good" if good else "bad"}">{"holds" if good else "does not hold"}'
    f"</span><span>{text}</span></li>"
    for good, text in lines
  )
  return f'<h2>Findings</h2>\n<section class="card"><ul class="findings">{items}</ul></section>\n'


def tables(evaluations: Sequence[TaskEvaluation]) -> str:
  """Every task's scores, plotted and in numbers, and its rates."""
  if not evaluations:
    return ""
  cards = "".join(map(_card, evaluations))
  return f'<h2>Scores</h2>\n<section class="tables">{cards}</section>\n'


def _card(task: TaskEvaluation) -> str:
  """The headline with intervals; systems by metrics, then the first metric by language; rates."""
  slm = task.scores["slm"]
  first = next(iter(slm.values()))
  languages = list(first.per_language) if len(first.per_language) > 1 else []
  heads = "".join(f"<th>{METRIC_NAMES[name]}</th>" for name in slm)
  heads += "".join(
    f"<th{_rule(i)}>{METRIC_NAMES[first.metric]} {escape(language)}</th>"
    for i, language in enumerate(languages)
  )
  rows = "".join(
    f"<tr{' class=main' if system == 'slm' else ''}><td>{SYSTEM_NAMES[system]}</td>"
    + "".join(f"<td{_title(score)}>{score.value:.1f}</td>" for score in scores.values())
    + "".join(
      f"<td{_rule(i)}>{scores[first.metric].per_language[language]:.1f}</td>"
      for i, language in enumerate(languages)
    )
    + "</tr>"
    for system, scores in task.scores.items()
  )
  plot = score_plot_svg(
    [(SYSTEM_NAMES[system], scores[first.metric]) for system, scores in task.scores.items()],
    label=METRIC_NAMES[first.metric],
  )
  speed = task.audio_seconds / task.seconds["slm"] if task.seconds["slm"] else 0.0
  return (
    f'<div class="card"><h3>{escape(task.task)}</h3>{plot}<div class="scroll"><table><thead><tr>'
    f"<th>{len(task.predictions)} examples, percent</th>{heads}</tr></thead><tbody>{rows}</tbody>"
    f"</table></div>{_rates(task)}"
    f'<p class="small soft">{escape(_method(slm.values()))} SLM:'
    f" {task.audio_seconds:.0f} s of audio in {task.seconds['slm']:.1f} s ({speed:.1f}× real time),"
    " compilation included.</p></div>"
  )


def _rates(task: TaskEvaluation) -> str:
  parts = []
  for system, rates in task.rates.items():
    shown = ", ".join(f"{METRIC_NAMES[name].lower()} {r.value:.1f}" for name, r in rates.items())
    parts.append(f"<dt>{SYSTEM_NAMES[system]}</dt><dd>{shown}</dd>")
  if task.agreement:
    shown = ", ".join(f"{METRIC_NAMES[n]} {score.value:.1f}" for n, score in task.agreement.items())
    parts.append(f"<dt>SLM's texts against the text oracle's</dt><dd>{shown}</dd>")
  if not parts:
    return ""
  return (
    f"<details><summary>Behaviour, percent of answers</summary><dl>{''.join(parts)}</dl></details>"
  )


def _title(score: Score) -> str:
  if score.interval is None:
    return ""
  low, high = score.interval
  return f' title="95 %: {low:.1f} to {high:.1f}"'


def _points(value: float) -> str:
  return f"{value:.1f}".replace("-", "\u2212")


def _rule(column: int) -> str:
  return ' class="rule"' if column == 0 else ""


def _method(scores: Iterable[Score]) -> str:
  """What a reader needs to compare the numbers: normalisers and signatures."""
  texts = []
  for score in scores:
    name = METRIC_NAMES[score.metric]
    texts.append(f"{name}: {score.signature or f'normaliser {score.normaliser}'}.")
  return " ".join(texts)
