"""What a score is a function of: a few numbers for each text, whose sums over texts give the score.

Any set of texts is scored, and resampled, by summing rows: no text is looked at twice.

N texts, K numbers for each.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jiwer
import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from slm_jax.evaluation.normalisers import normaliser_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
  """One metric's numbers over N texts.

  Attributes:
    metric: its name.
    rows: float64 [N, K].
    value: sums over texts [..., K] -> percent [...].
    details: names of the first columns, which are counts worth reporting.
    normaliser: id of the one that the texts went through.
    signature: sacrebleu's, or "".
  """

  metric: str
  rows: np.ndarray
  value: Callable[[np.ndarray], np.ndarray]
  details: tuple[str, ...] = ()
  normaliser: str = "none"
  signature: str = ""

  def of(self, texts: Sequence[int]) -> "Statistics":
    """The same over some of the texts."""
    return dataclasses.replace(self, rows=self.rows[list(texts)])

  def total(self) -> float:
    return float(self.value(self.rows.sum(axis=0)))


def statistics_of(
  metric: str,
  references: Sequence[str],
  hypotheses: Sequence[str],
  *,
  normaliser: str = "basic-1",
  names: Sequence[Sequence[str]] | None = None,
  tokenizer: str = "13a",
) -> Statistics:
  """A metric's statistics, of the texts in order.

  Args:
    metric: key of `METRICS`.
    references, hypotheses: N texts each.
    normaliser: key of `normalisers.NORMALISERS`; "bleu", "chrf" and "jga" take texts as they are.
    names: each text's biasing words, for "b_wer" and "u_wer".
    tokenizer: sacrebleu's, for "bleu".

  Raises:
    ValueError: no texts, or not equally many of each; an unknown metric or normaliser.
  """
  if metric not in METRICS:
    raise ValueError(f"unknown metric {metric!r}; known: {sorted(METRICS)}")
  if not references:
    raise ValueError("no reference: a score needs at least one text")
  if len(references) != len(hypotheses):
    raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
  if metric in ("bleu", "chrf"):
    return _overlap(metric, references, hypotheses, tokenizer)
  if metric == "jga":
    normaliser = "none"
  normalise = normaliser_of(normaliser)
  if metric in ("b_wer", "u_wer"):
    if names is None or len(names) != len(references):
      raise ValueError(f"{metric} needs the biasing words of each of {len(references)} texts")
    words = [_words(map(normalise, own)) for own in names]
  else:
    words = []
  references, hypotheses = list(map(normalise, references)), list(map(normalise, hypotheses))
  if metric in ("wer", "cer"):
    rows, value, details = _edits(metric, references, hypotheses), _error_rate, EDITS
  elif metric in ("b_wer", "u_wer"):
    rows = _biased_edits(references, hypotheses, words, biased=metric == "b_wer")
    value, details = _error_rate, EDITS
  else:
    judge, details = _JUDGES[metric]
    rows = hits(map(judge, references, hypotheses))
    value = mean
  return Statistics(metric=metric, rows=rows, value=value, details=details, normaliser=normaliser)


def hits(values: Iterable[float]) -> np.ndarray:
  """Rows of one value in [0, 1] for each text, whose mean is the score."""
  found = np.asarray(list(values), np.float64)
  return np.stack([found, np.ones_like(found)], axis=1)


def mean(sums: np.ndarray) -> np.ndarray:
  """Percent of `hits`."""
  return 100.0 * sums[..., 0] / np.maximum(1, sums[..., 1])


def token_f1(reference: str, hypothesis: str) -> float:
  """F1 of the words that two normalised texts share, as SQuAD's, but that articles count; 1 if both are empty."""
  expected, found = reference.split(), hypothesis.split()
  if not expected or not found:
    return float(expected == found)
  shared = sum((collections.Counter(expected) & collections.Counter(found)).values())
  return 2 * shared / (len(expected) + len(found))


def dialogue_state(text: str) -> frozenset[tuple[str, str]] | None:
  """The (slot, value) pairs of "slot=value; slot=value" in lower case; None if it is not so written.

  "none" and the empty text are the empty state; order and white space do not matter.
  """
  text = " ".join(text.lower().split()).strip(" ;")
  if text in ("", "none"):
    return frozenset()
  pairs = [piece.partition("=") for piece in text.split(";") if piece.strip()]
  if any(not sign or not slot.strip() for slot, sign, _ in pairs):
    return None
  return frozenset((slot.strip(), value.strip()) for slot, _, value in pairs)


def _same_state(reference: str, hypothesis: str) -> bool:
  expected = dialogue_state(reference)
  return expected is not None and expected == dialogue_state(hypothesis)


# Metric -> (judge of one pair of normalised texts, in [0, 1]; what its sum is called).
_JUDGES: Mapping[str, tuple[Callable[[str, str], float], tuple[str, ...]]] = {
  "exact": (lambda reference, hypothesis: float(reference == hypothesis), ("correct",)),
  "f1": (token_f1, ()),
  "jga": (_same_state, ("correct",)),
}
EDITS = ("substitutions", "deletions", "insertions", "reference_length")


def _error_rate(sums: np.ndarray) -> np.ndarray:
  # References without a single word have no rate; counting one word keeps the value finite.
  return 100.0 * sums[..., :3].sum(axis=-1) / np.maximum(1, sums[..., 3])


def _edits(metric: str, references: list[str], hypotheses: list[str]) -> np.ndarray:
  process = jiwer.process_words if metric == "wer" else jiwer.process_characters
  found = process(references, hypotheses)
  rows = np.zeros((len(references), 4))
  for row, alignment, reference in zip(rows, found.alignments, found.references, strict=True):
    for chunk in alignment:
      if chunk.type != "equal":
        row[_COLUMNS[chunk.type]] += max(
          chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        )
    row[3] = len(reference)
  return rows


_COLUMNS = {"substitute": 0, "delete": 1, "insert": 2}


def _biased_edits(
  references: list[str], hypotheses: list[str], words: list[frozenset[str]], *, biased: bool
) -> np.ndarray:
  """Errors on each text's biasing words (B-WER, Le et al. 2021, arXiv:2104.02194), or on all others (U-WER).

  A substitution or deletion belongs to the word of the reference. An inserted word counts as biased if it is one of
  the same text's biasing words, so the errors of both add up to those of "wer". A name of several words is as many
  biasing words.
  """
  found = jiwer.process_words(references, hypotheses)
  rows = np.zeros((len(references), 4))
  for i, alignment in enumerate(found.alignments):
    expected, heard = found.references[i], found.hypotheses[i]
    for chunk in alignment:
      if chunk.type == "insert":
        there = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
      else:
        there = expected[chunk.ref_start_idx : chunk.ref_end_idx]
      count = sum((word in words[i]) == biased for word in there)
      if chunk.type != "equal":
        rows[i, _COLUMNS[chunk.type]] += count
      if chunk.type != "insert":
        rows[i, 3] += count
  return rows


def _words(names: Iterable[str]) -> frozenset[str]:
  return frozenset(word for name in names for word in name.split())


def bleu_tokenizer(languages: Iterable[str]) -> str:
  """sacrebleu's tokenizer for texts of one language; 13a of several, and of all that set words apart."""
  codes = {language.lower().split("-")[0].split("_")[0] for language in languages}
  if len(codes) == 1 and (code := codes.pop()) in _UNSPACED:
    return "zh" if code == "zh" else "char"
  return "13a"


# Written without spaces between words.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my"})


def _overlap(
  metric: str, references: Sequence[str], hypotheses: Sequence[str], tokenizer: str
) -> Statistics:
  scorer = BLEU(tokenize=tokenizer) if metric == "bleu" else CHRF()
  # sacrebleu's own significance tests resample these; its public functions take whole corpora only.
  rows = scorer._extract_corpus_statistics(list(hypotheses), [list(references)])

  def value(sums: np.ndarray) -> np.ndarray:
    flat = sums.reshape(-1, sums.shape[-1]).astype(np.int64).tolist()
    found = [scorer._compute_score_from_stats(row).score for row in flat]
    return np.asarray(found).reshape(sums.shape[:-1])

  return Statistics(
    metric=metric,
    rows=np.asarray(rows, np.float64),
    value=value,
    signature=str(scorer.get_signature()),
  )


# BLEU and chrF with sacrebleu's defaults and one reference; "exact": equal after normalisation; "f1": `token_f1`;
# "jga": equal `dialogue_state`.
METRICS = ("wer", "cer", "b_wer", "u_wer", "bleu", "chrf", "exact", "f1", "jga")
# The lower, the better.
ERROR_METRICS = frozenset({"wer", "cer", "b_wer", "u_wer"})
