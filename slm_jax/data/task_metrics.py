"""Metrics of tasks by name: the project's scores as SeqIO metric functions, and the kind they make a task."""

import functools
from collections.abc import Callable, Mapping, Sequence

from slm_jax.evaluation.scores import Score, bleu, cer, chrf, exact_match, wer

# What `slm_jax eval` scores each kind of task by.
KINDS: Mapping[str, tuple[str, ...]] = {
  "answer": ("exact",),
  "transcription": ("wer", "cer", "exact"),
  "translation": ("bleu", "chrf", "exact"),
}
_SCORES: Mapping[str, Callable[..., Score]] = {
  "wer": wer,
  "cer": cer,
  "bleu": bleu,
  "chrf": chrf,
  "exact": exact_match,
}


def kind_of(metrics: Sequence[str]) -> str:
  """The kind of task that `slm_jax eval` scores by these metrics.

  Raises ValueError for an unknown metric, or for metrics of several kinds.
  """
  for name in metrics:
    if name not in _SCORES:
      raise ValueError(f"metrics={tuple(metrics)}: {name!r} is none of {', '.join(_SCORES)}")
  # The first, so that "exact" alone makes an answer.
  for kind, known in KINDS.items():
    if set(metrics) <= set(known):
      return kind
  raise ValueError(f"metrics={tuple(metrics)} go with no kind of task; there are {dict(KINDS)}")


def metric_functions(metrics: Sequence[str]) -> list[Callable]:
  """SeqIO metric functions `(targets, predictions) → {name: percent}`."""
  return [functools.partial(_evaluate, metric=name) for name in metrics]


def _evaluate(
  targets: Sequence[str], predictions: Sequence[str], *, metric: str
) -> dict[str, float]:
  return {metric: _SCORES[metric](targets, predictions).value}
