"""Scores against values worked out by hand."""

import jiwer
import numpy as np
import pytest
import sacrebleu

from slm_jax.evaluation import bootstrap, scores
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.normalisers import normalise_basic
from slm_jax.evaluation.statistics import bleu_tokenizer, statistics_of


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
  assert normalise_basic(text) == expected
  assert normalise_basic(expected) == expected


def test_wer_by_hand():
  # "a b c d" → "a x c": one substitution, one deletion; "e f" → "e f g": one insertion; 6 words.
  score = scores.score("wer", ["a b c d", "e f"], ["a x c", "e f g"], ["en", "de"])
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
  score = scores.score(
    "cer", ["kitten"], ["sitting"]
  )  # two substitutions, one insertion, six characters
  assert score.value == pytest.approx(100 * 3 / 6)


def test_wer_counts_words_of_the_corpus_not_a_mean_of_rates():
  assert scores.score("wer", ["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"]).value == 10.0


def test_wer_ignores_case_and_punctuation_and_not_with_none():
  assert scores.score("wer", ["Hello, world."], ["hello world"]).value == 0.0
  assert scores.score("wer", ["Hello, world."], ["hello world"], normaliser="none").value == 100.0


@pytest.mark.parametrize(
  ("reference", "hypothesis", "rate"),
  [("a b", "", 100.0), ("", "", 0.0), ("", "a b", 200.0), ("a", "a b c", 200.0)],
)
def test_wer_of_empty_texts_is_finite(reference, hypothesis, rate):
  assert scores.score("wer", [reference], [hypothesis]).value == rate


def test_an_empty_reference_among_others_counts_its_insertions():
  assert scores.score("wer", ["a b", ""], ["a b", "c"]).value == 50.0


def test_wer_agrees_with_jiwer():
  references = ["the cat sat on the mat", "two dogs run", "a bird sings at noon"]
  hypotheses = ["the cat sat in mat", "two dogs run far", "a bird at noon"]
  assert scores.score("wer", references, hypotheses).value == pytest.approx(
    100 * jiwer.wer(references, hypotheses)
  )
  assert scores.score("cer", references, hypotheses).value == pytest.approx(
    100 * jiwer.cer(references, hypotheses)
  )


def test_bleu_and_chrf_are_cased_and_signed():
  references, hypotheses = ["The cat sat on the mat ."], ["the cat sat on the mat ."]
  assert scores.score("bleu", references, references).value == pytest.approx(100.0)
  assert scores.score("bleu", references, hypotheses).value < 100.0
  assert scores.score("chrf", references, references).value == pytest.approx(100.0)
  assert "tok:13a" in scores.score("bleu", references, hypotheses).signature
  assert scores.score("bleu", references, hypotheses).value == pytest.approx(
    sacrebleu.corpus_bleu(hypotheses, [references]).score
  )
  assert scores.score("chrf", references, hypotheses).value == pytest.approx(
    sacrebleu.corpus_chrf(hypotheses, [references]).score
  )


def test_bleu_per_language():
  references = ["one two three four five", "eins zwei drei vier fünf"]
  score = scores.score("bleu", references, [references[0], "gar nichts davon ist da"], ["en", "de"])
  assert score.per_language["en"] == pytest.approx(100.0)
  assert score.per_language["de"] < 10 < score.value < 90


def test_exact_match():
  score = scores.score(
    "exact", ["Red.", "blue", "two"], ["red", "green", "two"], ["en", "en", "de"]
  )
  assert score.value == pytest.approx(100 * 2 / 3)
  assert score.per_language == {"de": 100.0, "en": 50.0}


def test_f1_by_hand():
  # "a b c" and "b c d e" share two words of three and four.
  assert scores.score("f1", ["a b c"], ["b c d e"]).value == pytest.approx(100 * 2 * 2 / 7)
  assert scores.score("f1", ["", "", "a"], ["", "a", ""]).value == pytest.approx(100 / 3)
  # A repeated word counts as often as both have it.
  assert scores.score("f1", ["red and red"], ["Red, red, red."]).value == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
  ("reference", "hypothesis", "right"),
  [
    ("hotel-area=north; hotel-stars=4", "hotel-stars=4;hotel-area = North ;", 1),
    ("hotel-area=north; hotel-stars=4", "hotel-area=north", 0),
    ("hotel-area=north", "hotel-area=north; hotel-stars=4", 0),
    ("hotel-area=north", "hotel-area=south", 0),
    ("none", "", 1),
    ("none", "hotel-area=north", 0),
    ("hotel-area=north", "the area is north", 0),
    ("hotel-area=north", "hotel-area=north; and four stars", 0),
  ],
)
def test_joint_goal_accuracy(reference, hypothesis, right):
  assert scores.score("jga", [reference], [hypothesis]).value == 100.0 * right


def test_biased_wer_by_hand():
  references = ["call Lilo and Mira Voss now", "no name here"]
  # Lilo substituted, Mira deleted, Voss right, "please" and a second "Voss" inserted; "here" deleted.
  hypotheses = ["call lila and Voss Voss now please", "no name"]
  names = [("Lilo", "Mira Voss"), ()]
  biased = scores.score("b_wer", references, hypotheses, ["en", "de"], names=names)
  unbiased = scores.score("u_wer", references, hypotheses, ["en", "de"], names=names)
  whole = scores.score("wer", references, hypotheses)
  # "Mira Voss" against "Voss Voss" is best one substitution.
  assert biased.details == {
    "substitutions": 2,
    "deletions": 0,
    "insertions": 0,
    "reference_length": 3,
  }
  assert unbiased.details == {
    "substitutions": 0,
    "deletions": 1,
    "insertions": 1,
    "reference_length": 6,
  }
  for name, count in whole.details.items():
    assert count == biased.details[name] + unbiased.details[name]
  assert biased.per_language == {"de": 0.0, "en": pytest.approx(100 * 2 / 3)}


def test_an_inserted_biasing_word_of_the_text_is_a_biased_error_and_another_is_not():
  for heard, expected in (("ask Lilo Lilo", (1, 0)), ("ask Lilo Mira", (0, 1))):
    both = (scores.score(m, ["ask Lilo"], [heard], names=[("Lilo",)]) for m in ("b_wer", "u_wer"))
    assert tuple(score.details["insertions"] for score in both) == expected
  with pytest.raises(ValueError, match="biasing words of each of 1"):
    scores.score("b_wer", ["a"], ["a"], names=[])


# --- the libraries' own examples, and odd texts -----------------------------------------------

# Of the READMEs of jiwer and sacrebleu.
README_REFERENCES = [
  "hello world",
  "i like monthy python",
  "what do you mean, african or european swallow?",
]
README_HYPOTHESES = ["hello duck", "i like", "what you mean swallow?"]
BLEU_REFERENCES = [
  "The dog bit the man.",
  "It was not unexpected.",
  "The man bit him first.",
]
BLEU_HYPOTHESES = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
ODD = [
  ("", "something"),
  ("something", ""),
  ("我喜欢喝茶。", "我喜欢喝咖啡。"),
  ("東京は大きい", "東京 は大きい"),
  ("It costs $3.50, or 1,000 pesos!", "It costs 3.50 or one thousand pesos"),
  ("naïve café — déjà vu…", "naive cafe - deja vu..."),
  ("  spaced   out  ", "spaced out"),
  ("नमस्ते दुनिया", "नमस्ते"),
]


def test_scores_are_those_of_the_readmes():
  assert scores.score(
    "wer", README_REFERENCES, README_HYPOTHESES, normaliser="none"
  ).value == pytest.approx(100 * jiwer.wer(README_REFERENCES, README_HYPOTHESES))
  assert scores.score("bleu", BLEU_REFERENCES, BLEU_HYPOTHESES).value == pytest.approx(
    sacrebleu.corpus_bleu(BLEU_HYPOTHESES, [BLEU_REFERENCES]).score
  )


@pytest.mark.parametrize("texts", [ODD, *[[pair] for pair in ODD]])
def test_odd_texts_score_as_in_the_libraries(texts):
  references, hypotheses = (list(side) for side in zip(*texts, strict=True))
  assert scores.score("bleu", references, hypotheses).value == pytest.approx(
    sacrebleu.corpus_bleu(hypotheses, [references]).score
  )
  assert scores.score("chrf", references, hypotheses).value == pytest.approx(
    sacrebleu.corpus_chrf(hypotheses, [references]).score
  )
  for metric, process in (("wer", jiwer.process_words), ("cer", jiwer.process_characters)):
    stripped = [text.strip() for text in references], [text.strip() for text in hypotheses]
    found, expected = (
      scores.score(metric, references, hypotheses, normaliser="none").details,
      process(*stripped),
    )
    assert [found[name] for name in ("substitutions", "deletions", "insertions")] == [
      expected.substitutions,
      expected.deletions,
      expected.insertions,
    ]
    assert found["reference_length"] == expected.hits + expected.substitutions + expected.deletions


@pytest.mark.parametrize(
  ("languages", "tokenizer"),
  [(["zh", "zh-CN"], "zh"), (["ja"], "char"), (["en", "zh"], "13a"), (["de"], "13a"), ([], "13a")],
)
def test_bleu_of_a_language_without_spaces_is_of_its_characters(languages, tokenizer):
  assert bleu_tokenizer(languages) == tokenizer
  pair = ["我喜欢在早上喝茶。"], ["我喜欢在早上喝咖啡。"]
  found = statistics_of("bleu", *pair, tokenizer=tokenizer)
  assert f"tok:{tokenizer}" in found.signature
  expected = sacrebleu.corpus_bleu(pair[1], [pair[0]], tokenize=tokenizer).score
  assert found.total() == pytest.approx(expected) and (tokenizer == "13a" or expected > 30)


# --- intervals -------------------------------------------------------------------------------


def test_resampled_scores_are_the_scores_of_the_resamples():
  """Also of BLEU and chrF, whose statistics come from inside sacrebleu."""
  resampling = Resampling(resamples=5, seed=3)
  texts = list(zip(*ODD[2:], strict=True))
  for metric in ("wer", "cer", "bleu", "chrf", "exact", "f1"):
    statistics = statistics_of(metric, *texts)
    drawn = np.concatenate(list(bootstrap._counts(len(texts[0]), resampling)))
    for counts, value in zip(drawn, bootstrap.resampled(statistics, resampling), strict=True):
      rows = np.repeat(np.arange(len(texts[0])), counts.astype(int))
      again = statistics_of(metric, *([side[i] for i in rows] for side in texts))
      assert value == pytest.approx(again.total())


def test_an_interval_is_seeded_covers_its_score_and_shrinks_with_more_texts():
  rng = np.random.default_rng(0)
  hits = rng.random(400) < 0.7
  references, hypotheses = ["a"] * 400, ["a" if hit else "b" for hit in hits]
  few = statistics_of("exact", references[:40], hypotheses[:40])
  many = statistics_of("exact", references, hypotheses)
  (low, high), (low_few, high_few) = (bootstrap.interval(s, Resampling()) for s in (many, few))
  assert bootstrap.interval(many, Resampling()) == (low, high)
  assert bootstrap.interval(many, Resampling(seed=1)) != (low, high)
  assert low < many.total() < high and high - low < 0.5 * (high_few - low_few)
  # The normal approximation of a share of 400.
  assert high - low == pytest.approx(200 * 1.96 * np.sqrt(0.7 * 0.3 / 400), rel=0.15)


def test_blocks_of_resamples_change_no_shape(monkeypatch):
  statistics = statistics_of("wer", ["a b", "c d", "e"], ["a b", "c x", ""])
  monkeypatch.setattr(bootstrap, "_BLOCK", 10)
  assert bootstrap.resampled(statistics, Resampling(resamples=8)).shape == (8,)


def test_paired_differences():
  references = [f"word{i}" for i in range(40)]
  good = statistics_of("exact", references, references[:36] + ["no"] * 4)
  bad = statistics_of("exact", references, references[:20] + ["no"] * 20)
  found = bootstrap.paired_difference(good, bad, Resampling())
  assert found.value == pytest.approx(40.0) and found.significant and found.p < 0.01
  assert 20 < found.interval[0] < 40 < found.interval[1] < 60
  same = bootstrap.paired_difference(bad, bad, Resampling())
  assert (same.value, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0) and not same.significant
  with pytest.raises(ValueError, match="do not pair"):
    bootstrap.paired_difference(good, bad.of(range(3)), Resampling())


@pytest.mark.parametrize("metric", ["wer", "cer", "bleu", "chrf", "exact", "f1"])
def test_bad_arguments_are_refused(metric):
  with pytest.raises(ValueError, match="at least one"):
    scores.score(metric, [], [])
  with pytest.raises(ValueError, match="2 references but 1 hyp"):
    scores.score(metric, ["a", "b"], ["a"])
  with pytest.raises(ValueError, match="1 references but 2 lang"):
    scores.score(metric, ["a"], ["a"], ["en", "de"])


def test_an_unknown_normaliser_is_refused():
  with pytest.raises(ValueError, match="basic-1"):
    scores.score("wer", ["a"], ["a"], normaliser="whisper")
