"""Metrics of tasks by name: the project's scores as SeqIO metric functions, and the kind they make a task."""

import functools
from collections.abc import Callable, Sequence

from slm_jax.evaluation.statistics import METRICS, statistics_of
from slm_jax.evaluation.task_scores import KIND_METRICS, NAMED_METRICS


def kind_of(metrics: Sequence[str]) -> str:
  """The kind of task that `slm_jax eval` scores by these metrics.

  Raises ValueError for an unknown metric, or for metrics of several kinds.
  """
  for name in metrics:
    if name not in METRICS:
      raise ValueError(f"metrics={tuple(metrics)}: {name!r} is none of {', '.join(METRICS)}")
  # The first, so that "exact" alone makes an answer, and "wer" a transcription.
  for kind, known in KIND_METRICS.items():
    if set(metrics) <= set(known):
      return kind
  raise ValueError(
    f"metrics={tuple(metrics)} go with no kind of task; there are {dict(KIND_METRICS)}"
  )


def metric_functions(metrics: Sequence[str]) -> list[Callable]:
  """SeqIO metric functions `(targets, predictions) → {name: percent}`, of the metrics that need no more than these."""
  return [
    functools.partial(_evaluate, metric=name) for name in metrics if name not in NAMED_METRICS
  ]


def _evaluate(
  targets: Sequence[str], predictions: Sequence[str], *, metric: str
) -> dict[str, float]:
  return {metric: statistics_of(metric, targets, predictions).total()}
