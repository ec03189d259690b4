"""Corpus scores: WER, CER, BLEU, chrF and exact match, in total and per language.

Every value is a percentage (WER 3.2 means 3.2 %), and every score carries the id of the text
normaliser and, for BLEU and chrF, sacrebleu's signature: without them a number cannot be compared.
"""

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import jiwer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


def normalise_basic(text: str) -> str:
  """'basic-1': NFKC, lower case, punctuation removed, white space collapsed to single spaces.

  Every character of a Unicode punctuation category becomes a space, except that an apostrophe
  between two letters stays (as ') because "don't" is one word. Letters keep their accents, and
  digits and words for numbers stay as they are. Not the normaliser of any published benchmark:
  numbers made with it compare with each other only. A change of its rules takes a new id.
  """
  text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
  text = text.replace("\u2019", "'")
  kept = []
  for i, char in enumerate(text):
    inside = 0 < i < len(text) - 1 and text[i - 1].isalpha() and text[i + 1].isalpha()
    punctuation = unicodedata.category(char).startswith("P")
    kept.append(" " if punctuation and not (char == "'" and inside) else char)
  return " ".join("".join(kept).split())


def normalise_none(text: str) -> str:
  """'none': the text as it is, but for white space at its ends."""
  return text.strip()


NORMALISERS: Mapping[str, Callable[[str], str]] = {
  "basic-1": normalise_basic,
  "none": normalise_none,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """One metric over one set of texts.

  Attributes:
    metric: "wer", "cer", "bleu", "chrf" or "exact".
    value: percent. An error rate can exceed 100.
    count: number of texts.
    normaliser: key of `NORMALISERS` applied to references and hypotheses alike.
    signature: sacrebleu's, "" for the other metrics.
    per_language: the same metric over each language's texts alone, percent.
    details: for error rates the counts behind the value.
  """

  metric: str
  value: float
  count: int
  normaliser: str
  signature: str = ""
  per_language: Mapping[str, float] = dataclasses.field(default_factory=dict)
  details: Mapping[str, int] = dataclasses.field(default_factory=dict)


def wer(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Word error rate over the corpus: (substitutions + deletions + insertions) / reference words."""
  return _error_rate("wer", references, hypotheses, languages, normaliser)


def cer(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Character error rate, spaces counted as characters, over the corpus."""
  return _error_rate("cer", references, hypotheses, languages, normaliser)


def bleu(
  references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str] | None = None
) -> Score:
  """Corpus BLEU (sacrebleu's defaults: 13a tokens, cased, exponential smoothing), one reference."""
  return _overlap("bleu", BLEU, references, hypotheses, languages)


def chrf(
  references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str] | None = None
) -> Score:
  """Corpus chrF (sacrebleu's defaults: characters to order 6, no words, beta 2), one reference."""
  return _overlap("chrf", CHRF, references, hypotheses, languages)


def exact_match(
  references: Sequence[str],
  hypotheses: Sequence[str],
  languages: Sequence[str] | None = None,
  *,
  normaliser: str = "basic-1",
) -> Score:
  """Percent of hypotheses equal to their reference after normalisation."""
  _check(references, hypotheses, languages)
  normalise = _normaliser(normaliser)
  hits = [
    normalise(reference) == normalise(hypothesis)
    for reference, hypothesis in zip(references, hypotheses, strict=True)
  ]
  return Score(
    metric="exact",
    value=_percent(sum(hits), len(hits)),
    count=len(hits),
    normaliser=normaliser,
    per_language={
      language: _percent(sum(hits[i] for i in rows), len(rows))
      for language, rows in _rows_by_language(languages).items()
    },
    details={"correct": sum(hits)},
  )


def _error_rate(metric, references, hypotheses, languages, normaliser) -> Score:
  _check(references, hypotheses, languages)
  normalise = _normaliser(normaliser)
  references = [normalise(text) for text in references]
  hypotheses = [normalise(text) for text in hypotheses]
  counts = _edit_counts(metric, references, hypotheses)
  per_language = {
    language: _rate(
      _edit_counts(metric, [references[i] for i in rows], [hypotheses[i] for i in rows])
    )
    for language, rows in _rows_by_language(languages).items()
  }
  return Score(
    metric=metric,
    value=_rate(counts),
    count=len(references),
    normaliser=normaliser,
    per_language=per_language,
    details=counts,
  )


def _edit_counts(metric: str, references: list[str], hypotheses: list[str]) -> dict[str, int]:
  process = jiwer.process_words if metric == "wer" else jiwer.process_characters
  result = process(references, hypotheses)
  return {
    "substitutions": result.substitutions,
    "deletions": result.deletions,
    "insertions": result.insertions,
    "reference_length": result.hits + result.substitutions + result.deletions,
  }


def _rate(counts: Mapping[str, int]) -> float:
  errors = counts["substitutions"] + counts["deletions"] + counts["insertions"]
  # References without a single word have no rate; counting one word keeps the value finite.
  return _percent(errors, max(1, counts["reference_length"]))


def _overlap(metric: str, scorer_type, references, hypotheses, languages) -> Score:
  _check(references, hypotheses, languages)
  scorer = scorer_type()

  def score(rows: Sequence[int]) -> float:
    return scorer.corpus_score([hypotheses[i] for i in rows], [[references[i] for i in rows]]).score

  return Score(
    metric=metric,
    value=score(range(len(references))),
    count=len(references),
    normaliser="none",
    signature=str(scorer.get_signature()),
    per_language={language: score(rows) for language, rows in _rows_by_language(languages).items()},
  )


def _check(references, hypotheses, languages) -> None:
  if not references:
    raise ValueError("no reference: a score needs at least one text")
  if len(references) != len(hypotheses):
    raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
  if languages is not None and len(languages) != len(references):
    raise ValueError(f"{len(references)} references but {len(languages)} languages")


def _normaliser(name: str) -> Callable[[str], str]:
  if name not in NORMALISERS:
    raise ValueError(f"unknown normaliser {name!r}; known: {sorted(NORMALISERS)}")
  return NORMALISERS[name]


def _rows_by_language(languages: Sequence[str] | None) -> dict[str, list[int]]:
  rows: dict[str, list[int]] = {}
  for i, language in enumerate(languages or ()):
    rows.setdefault(language, []).append(i)
  return dict(sorted(rows.items()))


def _percent(part: float, whole: int) -> float:
  return 100.0 * part / whole
