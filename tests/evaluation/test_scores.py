"""Scores against values worked out by hand."""

import jiwer
import pytest
import sacrebleu

from slm_jax.evaluation import scores


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("  Hello,   WORLD! ", "hello world"),
    ("don't", "don't"),
    ("don\u2019t", "don't"),
    ("'quoted'", "quoted"),
    ("l\u2019homme", "l'homme"),
    ("well-known", "well known"),
    ("Straße ÄÖÜ é", "straße äöü é"),
    ("e\u0301", "é"),
    ("¿Qué? «oui»", "qué oui"),
    ("ﬁne ½", "fine 1⁄2"),
    ("5 €", "5 €"),
    ("?!", ""),
    ("", ""),
  ],
)
def test_basic_normaliser(text, expected):
  assert scores.normalise_basic(text) == expected
  assert scores.normalise_basic(expected) == expected


def test_wer_by_hand():
  # "a b c d" → "a x c": one substitution, one deletion; "e f" → "e f g": one insertion; 6 words.
  score = scores.wer(["a b c d", "e f"], ["a x c", "e f g"], ["en", "de"])
  assert score.value == pytest.approx(100 * 3 / 6)
  assert score.details == {
    "substitutions": 1,
    "deletions": 1,
    "insertions": 1,
    "reference_length": 6,
  }
  assert score.per_language == {"de": pytest.approx(50.0), "en": pytest.approx(50.0)}
  assert (score.count, score.normaliser) == (2, "basic-1")


def test_cer_by_hand():
  score = scores.cer(["kitten"], ["sitting"])  # two substitutions, one insertion, six characters
  assert score.value == pytest.approx(100 * 3 / 6)


def test_wer_counts_words_of_the_corpus_not_a_mean_of_rates():
  assert scores.wer(["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"]).value == 10.0


def test_wer_ignores_case_and_punctuation_and_not_with_none():
  assert scores.wer(["Hello, world."], ["hello world"]).value == 0.0
  assert scores.wer(["Hello, world."], ["hello world"], normaliser="none").value == 100.0


@pytest.mark.parametrize(
  ("reference", "hypothesis", "rate"),
  [("a b", "", 100.0), ("", "", 0.0), ("", "a b", 200.0), ("a", "a b c", 200.0)],
)
def test_wer_of_empty_texts_is_finite(reference, hypothesis, rate):
  assert scores.wer([reference], [hypothesis]).value == rate


def test_an_empty_reference_among_others_counts_its_insertions():
  assert scores.wer(["a b", ""], ["a b", "c"]).value == 50.0


def test_wer_agrees_with_jiwer():
  references = ["the cat sat on the mat", "two dogs run", "a bird sings at noon"]
  hypotheses = ["the cat sat in mat", "two dogs run far", "a bird at noon"]
  assert scores.wer(references, hypotheses).value == pytest.approx(
    100 * jiwer.wer(references, hypotheses)
  )
  assert scores.cer(references, hypotheses).value == pytest.approx(
    100 * jiwer.cer(references, hypotheses)
  )


def test_bleu_and_chrf_are_cased_and_signed():
  references, hypotheses = ["The cat sat on the mat ."], ["the cat sat on the mat ."]
  assert scores.bleu(references, references).value == pytest.approx(100.0)
  assert scores.bleu(references, hypotheses).value < 100.0
  assert scores.chrf(references, references).value == pytest.approx(100.0)
  assert "tok:13a" in scores.bleu(references, hypotheses).signature
  assert scores.bleu(references, hypotheses).value == pytest.approx(
    sacrebleu.corpus_bleu(hypotheses, [references]).score
  )
  assert scores.chrf(references, hypotheses).value == pytest.approx(
    sacrebleu.corpus_chrf(hypotheses, [references]).score
  )


def test_bleu_per_language():
  references = ["one two three four five", "eins zwei drei vier fünf"]
  score = scores.bleu(references, [references[0], "gar nichts davon ist da"], ["en", "de"])
  assert score.per_language["en"] == pytest.approx(100.0)
  assert score.per_language["de"] < 10 < score.value < 90


def test_exact_match():
  score = scores.exact_match(["Red.", "blue", "two"], ["red", "green", "two"], ["en", "en", "de"])
  assert score.value == pytest.approx(100 * 2 / 3)
  assert score.per_language == {"de": 100.0, "en": 50.0}


@pytest.mark.parametrize(
  "metric", [scores.wer, scores.cer, scores.bleu, scores.chrf, scores.exact_match]
)
def test_bad_arguments_are_refused(metric):
  with pytest.raises(ValueError, match="at least one"):
    metric([], [])
  with pytest.raises(ValueError, match="2 references but 1 hyp"):
    metric(["a", "b"], ["a"])
  with pytest.raises(ValueError, match="1 references but 2 lang"):
    metric(["a"], ["a"], ["en", "de"])


def test_an_unknown_normaliser_is_refused():
  with pytest.raises(ValueError, match="basic-1"):
    scores.wer(["a"], ["a"], normaliser="whisper")
