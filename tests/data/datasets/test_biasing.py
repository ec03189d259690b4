"""Hints: an utterance's own names among as many distractors as asked for, the published lists as they are."""

import dataclasses
import json
import re

import pytest

from slm_jax.data.datasets.biasing import Biased, ListedBiasing
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import NotUsed
from slm_jax.data.hints import Hints, names_in, write_pool
from slm_jax.errors import UserError

WORDINGS = ("Recognize this speech in {language}. It may contain: {hints}.",)


def record(n, text="Then Marlow met O'Brien, I'm told."):
  return SpeechRecord(id=f"{n}", audio=b"", text=text, language="en", speaker="9")


@pytest.fixture
def pool(tmp_path):
  path = tmp_path / "pool.txt"
  path.write_text("".join(f"Name{n}x\t{n}\n" for n in range(60)) + "marlow\nMet Office\nName1x\n")
  return str(path)


def hints(utterance):
  return re.fullmatch(
    r"Recognize this speech in English\. It may contain: (.*)\.", utterance.instruction
  )[1].split(", ")


def test_names_are_capitals_inside_sentences():
  text = "Marlow saw Anna. She said: Peter's “Übung” in Saint-Malo! I think I’ll go."
  assert names_in(text) == ["Anna", "Peter's", "Übung", "Saint-Malo"]


def test_own_words_among_distractors_that_are_not_said(pool):
  recipe = Biased(instructions=WORDINGS, hints=Hints(pool=pool, distractors=20))
  orders = set()
  for n in range(40):
    utterance = recipe.utterance(record(n))
    found = hints(utterance)
    assert len(found) == len(set(found)) == 22 and {"Marlow", "O'Brien"} <= set(found)
    assert not {"marlow", "Met Office"} & set(found)  # they are, or begin with, words that are said
    assert utterance == recipe.utterance(record(n))
    assert utterance.target == record(n).text and utterance.task == "biasing"
    assert utterance.names == "Marlow|O'Brien"  # what biased error rates are of
    orders.add(found.index("Marlow"))
  assert len(orders) > 10  # the place tells nothing


def test_some_lists_have_distractors_alone(pool):
  recipe = Biased(instructions=WORDINGS, hints=Hints(pool=pool, distractors=5, hint_share=0.5))
  never = dataclasses.replace(recipe.hints, hint_share=0.0)
  with_own = sum("Marlow" in hints(recipe.utterance(record(n))) for n in range(200))
  assert 70 < with_own < 130
  assert not any(
    "Marlow" in hints(dataclasses.replace(recipe, hints=never).utterance(record(n)))
    for n in range(50)
  )


def test_rare_words_are_those_that_are_not_common(pool, tmp_path):
  common = tmp_path / "common.txt"
  common.write_text("the\nair\nis\n")
  rare = Hints(pool=pool, common_words=str(common), distractors=3)
  recipe = Biased(instructions=WORDINGS, hints=rare, lower_case=True)
  found = hints(recipe.utterance(record(1, "THE AIR IS CURIOUSLY INTERMINGLED")))
  assert {"curiously", "intermingled"} <= set(found) and len(found) == 5


def test_pool_of_a_corpus_and_its_limits(tmp_path):
  path = tmp_path / "names.txt"
  assert write_pool(path, ["Then Anna came.", "There was Bob, and Anna.", "Nobody."]) == 2
  assert path.read_text() == "Anna\nBob\n"
  for distractors, text in ((3, "Hello."), (2, "Then Anna came.")):
    recipe = Biased(instructions=WORDINGS, hints=Hints(pool=str(path), distractors=distractors))
    with pytest.raises(UserError, match=f"not said, fewer than distractors={distractors}"):
      recipe.utterance(record(1, text))


@pytest.mark.parametrize(
  "changes", [{"distractors": 0}, {"hint_share": 1.5}, {"instructions": ("Transcribe.",)}]
)
def test_settings_that_cannot_be(pool, changes):
  with pytest.raises(ValueError):
    wordings = changes.pop("instructions", WORDINGS)
    Biased(instructions=wordings, hints=Hints(**{"pool": pool, **changes}))


def test_changed_word_lists_change_the_description(pool, tmp_path):
  other = tmp_path / "other.txt"
  other.write_text("Name\n")
  first, second = (
    Biased(instructions=WORDINGS, hints=Hints(pool=p)).describe() for p in (pool, str(other))
  )
  assert first["words"] != second["words"] and json.dumps(first)


def test_published_lists_are_used_as_they_are(tmp_path):
  path = tmp_path / "test-clean.biasing_100.tsv"
  path.write_text(
    '237-134493-0004\tthe air is mated\t["mated"]\t["bead", "mated", "clegg\'s"]\n'
    '2830-3980-0017\twhen i was young\t[]\t["arisen", "curt"]\n'
  )
  recipe = ListedBiasing(instructions=WORDINGS, lists=str(path), lower_case=True)
  said = dataclasses.replace(record(0, "THE AIR IS MATED"), id="237-134493-0004")
  utterance = recipe.utterance(said)
  assert hints(utterance) == ["bead", "mated", "clegg's"] and utterance.target == "the air is mated"
  assert utterance.names == "mated"
  with pytest.raises(NotUsed, match="not in the biasing list"):
    recipe.utterance(record(5))
  assert json.dumps(recipe.describe())


@pytest.mark.parametrize("line", ["a\tb\tc", "a\tb\t[]\tnot a list"])
def test_lists_of_another_layout_are_refused(tmp_path, line):
  path = tmp_path / "lists.tsv"
  path.write_text(line + "\n")
  with pytest.raises(UserError, match=r"lists.tsv:1 has \d columns, expected id"):
    ListedBiasing(instructions=WORDINGS, lists=str(path)).utterance(record(1))
