"""Corpus scores, in total and per language: WER, CER, BLEU, chrF, exact match, F1, dialogue states, biased WER.

Every value is a percentage (WER 3.2 means 3.2 %), and every score carries the id of the text
normaliser and, for BLEU and chrF, sacrebleu's signature: without them a number cannot be compared.
"""

import dataclasses
from collections.abc import Mapping, Sequence

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


def wer(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Word error rate over the corpus: (substitutions + deletions + insertions) / reference words."""
  return _score("wer", references, hypotheses, languages, normaliser=normaliser)


def cer(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Character error rate, spaces counted as characters, over the corpus."""
  return _score("cer", references, hypotheses, languages, normaliser=normaliser)


def biased_wer(
  references: Sequence[str],
  hypotheses: Sequence[str],
  names: Sequence[Sequence[str]],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """B-WER (Le et al. 2021, arXiv:2104.02194): errors on each text's biasing words, per such word of the references.

  A substitution or deletion belongs to the word of the reference. An inserted word counts here if it is one of the
  same text's biasing words, and in `unbiased_wer` if not, so the errors of both add up to those of `wer`. A name of
  several words is as many biasing words. `names` go through the normaliser too.
  """
  return _score("b_wer", references, hypotheses, languages, normaliser=normaliser, names=names)


def unbiased_wer(
  references: Sequence[str],
  hypotheses: Sequence[str],
  names: Sequence[Sequence[str]],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """U-WER: the errors that `biased_wer` leaves, per word of the references that is no biasing word."""
  return _score("u_wer", references, hypotheses, languages, normaliser=normaliser, names=names)


def bleu(
  references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str] | None = None
) -> Score:
  """Corpus BLEU (sacrebleu's defaults: 13a tokens, cased, exponential smoothing), one reference."""
  return _score("bleu", references, hypotheses, languages)


def chrf(
  references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str] | None = None
) -> Score:
  """Corpus chrF (sacrebleu's defaults: characters to order 6, no words, beta 2), one reference."""
  return _score("chrf", references, hypotheses, languages)


def exact_match(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Percent of hypotheses equal to their reference after normalisation."""
  return _score("exact", references, hypotheses, languages, normaliser=normaliser)


def f1(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Mean over texts of the F1 of shared words; see `statistics.token_f1`."""
  return _score("f1", references, hypotheses, languages, normaliser=normaliser)


def joint_goal_accuracy(
  references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str] | None = None
) -> Score:
  """Percent of dialogue states in which every slot has its value and no other has one: `statistics.dialogue_state`."""
  return _score("jga", references, hypotheses, languages)


def _score(metric: str, references, hypotheses, languages, **options) -> Score:
  return score_of(statistics_of(metric, references, hypotheses, **options), languages)


def _rows_by_language(languages: Sequence[str] | None) -> dict[str, list[int]]:
  rows: dict[str, list[int]] = {}
  for i, language in enumerate(languages or ()):
    rows.setdefault(language, []).append(i)
  return dict(sorted(rows.items()))
