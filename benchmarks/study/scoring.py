"""Scores of the study's texts, with intervals over the utterances."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.conditions import kind_of
from slm_jax.evaluation.bootstrap import Resampling, interval
from slm_jax.evaluation.statistics import Statistics, statistics_of
from slm_jax.evaluation.task_scores import KIND_METRICS

RESAMPLING = Resampling()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """A metric of some runs' texts together, percent; `values` are those of each run alone."""

  metric: str
  value: float
  low: float
  high: float
  values: tuple[float, ...]
  count: int  # utterances


def metrics_of(condition: str) -> tuple[str, ...]:
  """What a condition is scored by; the first is the headline."""
  kind = kind_of(condition)
  return ("b_wer", "wer") if kind == "biasing" else KIND_METRICS[kind][:1]


def measured(folders: Sequence[Path], system: str, condition: str, metric: str) -> Measured | None:
  """The score of a system's texts in `folders`; None unless all of them have some.

  Runs share their utterances, so that resampling draws an utterance with the texts that all of them gave.
  """
  found = [_statistics(folder / f"{system}-{condition}.jsonl", metric) for folder in folders]
  each = [one for one in found if one is not None]
  if not each or len(each) < len(found):
    return None
  together = dataclasses.replace(each[0], rows=sum(one.rows for one in each))
  low, high = interval(together, RESAMPLING)
  return Measured(
    metric=metric,
    value=together.total(),
    low=low,
    high=high,
    values=tuple(one.total() for one in each),
    count=len(together.rows),
  )


def _statistics(path: Path, metric: str) -> Statistics | None:
  if not path.is_file():
    return None
  lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
  return statistics_of(
    metric,
    [line["target"] for line in lines],
    [line["prediction"] for line in lines],
    names=[tuple(line["names"]) for line in lines],
  )
