"""Metrics of tasks by name: the project's scores as SeqIO metric functions, and the kind they make a task."""

import functools
from collections.abc import Callable, Sequence

from slm_jax.evaluation import scores
from slm_jax.evaluation.runner import KIND_METRICS

_SCORES: dict[str, Callable[..., scores.Score]] = {
  "wer": scores.wer,
  "cer": scores.cer,
  "bleu": scores.bleu,
  "chrf": scores.chrf,
  "exact": scores.exact_match,
}


def kind_of(metrics: Sequence[str]) -> str:
  """The kind of task that `slm_jax eval` scores by these metrics.

  Raises ValueError for an unknown metric, or for metrics of several kinds.
  """
  for name in metrics:
    if name not in _SCORES:
      raise ValueError(f"metrics={tuple(metrics)}: {name!r} is none of {', '.join(_SCORES)}")
  # From the fewest metrics on: "exact" alone makes an answer.
  for kind, known in sorted(KIND_METRICS.items(), key=lambda item: len(item[1])):
    if set(metrics) <= set(known):
      return kind
  raise ValueError(f"metrics={tuple(metrics)} go with no kind of task; there are {KIND_METRICS}")


def metric_functions(metrics: Sequence[str]) -> list[Callable]:
  """SeqIO metric functions `(targets, predictions) → {name: percent}`."""
  return [functools.partial(_evaluate, metric=name) for name in metrics]


def _evaluate(
  targets: Sequence[str], predictions: Sequence[str], *, metric: str
) -> dict[str, float]:
  return {metric: _SCORES[metric](targets, predictions).value}
