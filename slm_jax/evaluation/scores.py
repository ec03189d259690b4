"""Corpus scores, in total and per language: WER, CER, BLEU, chrF, exact match, F1, dialogue states, biased WER.

Every value is a percentage (WER 3.2 means 3.2 %), and every score carries the id of the text
normaliser and, for BLEU and chrF, sacrebleu's signature: without them a number cannot be compared.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax.evaluation.bootstrap import Resampling, interval
from slm_jax.evaluation.statistics import Statistics, statistics_of

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """One metric over one set of texts.

  Attributes:
    metric: key of `statistics.METRICS`, or a rate of `behaviour.RATES`.
    value: percent. An error rate can exceed 100.
    count: number of texts.
    normaliser: key of `normalisers.NORMALISERS` applied to references and hypotheses alike.
    signature: sacrebleu's, "" for the other metrics.
    per_language: the same metric over each language's texts alone, percent.
    details: for error rates the counts behind the value.
    interval: bootstrap interval of the value, if one was asked for.
    language_intervals: the same per language.
  """

  metric: str
  value: float
  count: int
  normaliser: str
  signature: str = ""
  per_language: Mapping[str, float] = dataclasses.field(default_factory=dict)
  details: Mapping[str, int] = dataclasses.field(default_factory=dict)
  interval: Interval | None = None
  language_intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)


def score_of(
  statistics: Statistics,
  languages: Sequence[str] | None = None,
  resampling: Resampling | None = None,
) -> Score:
  """A metric's score, with intervals where there is a `resampling`; `languages` are the texts' own.

  Raises ValueError for another number of languages than of texts.
  """
  count = len(statistics.rows)
  if languages is not None and len(languages) != count:
    raise ValueError(f"{count} references but {len(languages)} languages")
  parts = {name: statistics.of(rows) for name, rows in _rows_by_language(languages).items()}
  sums = statistics.rows.sum(axis=0)
  return Score(
    metric=statistics.metric,
    value=statistics.total(),
    count=count,
    normaliser=statistics.normaliser,
    signature=statistics.signature,
    per_language={name: part.total() for name, part in parts.items()},
    details={name: round(sums[i]) for i, name in enumerate(statistics.details)},
    interval=None if resampling is None else interval(statistics, resampling),
    language_intervals={}
    if resampling is None
    else {name: interval(part, resampling) for name, part in parts.items()},
  )


def score(
  metric: str,
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  **options: Any,
) -> Score:
  """A metric of texts, without intervals; `options` and errors as of `statistics_of`, `languages` of `score_of`."""
  return score_of(statistics_of(metric, references, hypotheses, **options), languages)


def _rows_by_language(languages: Sequence[str] | None) -> dict[str, list[int]]:
  rows: dict[str, list[int]] = {}
  for i, language in enumerate(languages or ()):
    rows.setdefault(language, []).append(i)
  return dict(sorted(rows.items()))
