"""What kind of text an answer is."""

import pytest

from slm_jax.evaluation import behaviour
from slm_jax.evaluation.behaviour import Languages, follows, loops, refuses


@pytest.mark.parametrize(
  ("text", "refusal"),
  [
    ("I'm sorry, I cannot hear the audio.", True),
    ("As an AI, I have no ears.", True),
    ("I can\u2019t do that", True),
    ("Es tut mir leid.", True),
    ("Lo siento, no puedo.", True),
    ("Je suis désolé", True),
    ("She is sorry for the cat.", False),
    ("The dog can swim.", False),
    ("", False),
  ],
)
def test_refusals(text, refusal):
  assert refuses(text) == refusal


@pytest.mark.parametrize(
  ("text", "loop"),
  [
    ("red red red red", True),
    ("the red dog, the red dog. the red dog the red dog", True),
    ("a b c d a b c d a b c d a b c d", True),
    ("哈哈哈哈哈哈哈哈", True),
    ("red red red", False),
    ("very very good, very very good", False),
    ("a b c d e a b c d e a b c d e a b c d e", False),
    ("ten ten tens tenor", False),
    ("", False),
  ],
)
def test_loops(text, loop):
  assert loops(text) == loop


LANGUAGES = Languages([("en", "the dog sees a red pear"), ("de", "der hund sieht eine rote birne")])


@pytest.mark.parametrize(
  ("text", "language", "spoken"),
  [
    ("the red dog", "en", True),
    ("the red dog", "de", False),
    ("der Hund", "de", True),
    ("der dog", "en", True),
    ("xyz", "de", True),
    ("anything", "fr", True),
  ],
)
def test_languages_are_told_apart_by_the_evaluations_own_words(text, language, spoken):
  assert LANGUAGES.speaks(text, language) == spoken


def _follows(text, **changes):
  arguments = {
    "kind": "translation",
    "target": "der hund sieht eine rote birne",
    "transcript": "the dog sees a red pear",
    "instruction": "Translate to German.",
    "language": "de",
    "languages": LANGUAGES,
  }
  return follows(text, **arguments | changes)


@pytest.mark.parametrize(
  ("text", "changes", "followed"),
  [
    ("Der Hund sieht eine rote Birne.", {}, True),
    ("der hund sieht eine birne", {}, True),  # wrong, but what was asked for
    ("", {}, False),
    ("Translate to German", {}, False),
    ("the dog sees a red pear", {}, False),
    ("a red dog", {}, False),
    ("der der der der hund", {}, False),
    ("ich kann das nicht", {}, False),
    ("der hund " * 12, {}, False),
    ("the dog sees a pear", {"kind": "transcription", "language": "en"}, True),
    ("der hund", {"kind": "transcription", "language": "en"}, False),
    ("a=b; c=d", {"kind": "dialogue_state", "target": "a=c"}, True),
    ("the dog", {"kind": "dialogue_state", "target": "a=c"}, False),
    ("the dog sees a red pear", {"target": "the dog sees a red pear"}, True),
    ("no no no no", {"target": "No, no, no, no!"}, True),
  ],
)
def test_following(text, changes, followed):
  assert _follows(text, **changes) == followed


def test_rates_count_texts_and_not_what_the_target_does_too():
  found = behaviour.rates(
    ["I cannot.", "I cannot.", "", "a a a a"],
    kind="answer",
    targets=["blue", "I cannot", "blue", "blue"],
    transcripts=["x"] * 4,
    instructions=["y"] * 4,
    languages=["en"] * 4,
    spoken_languages=["en"] * 4,
  )
  assert tuple(found) == behaviour.RATES
  assert {name: one.total() for name, one in found.items()} == {
    "followed": 25.0,
    "refused": 25.0,
    "looped": 25.0,
    "empty": 25.0,
  }
