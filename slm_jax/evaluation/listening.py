"""Does a model listen? Its score on the right recording against its score on another one."""

import dataclasses
from collections.abc import Sequence

from slm_jax.evaluation.bootstrap import Resampling, paired_difference
from slm_jax.evaluation.statistics import ERROR_METRICS
from slm_jax.evaluation.task_scores import Scored, metric_statistics, metrics_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listening:
  """The verdict on one task.

  Attributes:
    metric: the kind's headline.
    slm, shuffled: its values, percent.
    gain: how much better the right recording is, percent points; above 0 is better, also of an error rate.
    interval: of the gain, by paired bootstrap.
    p: two-sided.
    listens: whether the whole interval is above 0.
  """

  metric: str
  slm: float
  shuffled: float
  gain: float
  interval: tuple[float, float]
  p: float
  listens: bool


def listening(
  kind: str,
  examples: Sequence[Scored],
  slm: Sequence[str],
  shuffled: Sequence[str],
  *,
  normaliser: str,
  resampling: Resampling,
) -> Listening:
  """Flags a model that is not significantly better on the right recording: it guesses, or learnt without hearing."""
  metric = metrics_of(kind, examples)[0]
  right, wrong = (
    metric_statistics(metric, examples, texts, normaliser) for texts in (slm, shuffled)
  )
  pair = (wrong, right) if metric in ERROR_METRICS else (right, wrong)
  difference = paired_difference(*pair, resampling)
  return Listening(
    metric=metric,
    slm=right.total(),
    shuffled=wrong.total(),
    gain=difference.value,
    interval=difference.interval,
    p=difference.p,
    listens=difference.interval[0] > 0,
  )
