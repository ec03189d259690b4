"""Nothing held out can reach training; names are open, sayable and new in every example."""

import re

import pytest

from slm_jax.data.mini_world.examples import sample_text_example
from slm_jax.data.mini_world.instructions import WORDINGS, wordings
from slm_jax.data.mini_world.lexicon import LANGUAGES, surface_words
from slm_jax.data.mini_world.names import sample_name, syllables
from slm_jax.data.mini_world.patterns import all_patterns, patterns_of
from slm_jax.data.mini_world.splits import SPLITS, Draws, split_of

NUM = 2000
EXAMPLES = {split: [sample_text_example(5, i, split) for i in range(NUM)] for split in SPLITS}


def names_of(split):
  return {name for example in EXAMPLES[split] for name in example.names}


def test_more_than_300_patterns_and_about_15_percent_held_out():
  keys = {split: {p.key for p in patterns_of(split)} for split in SPLITS}
  assert len(all_patterns()) > 300
  assert not keys["train"] & keys["heldout"]
  assert keys["train"] | keys["heldout"] == {p.key for p in all_patterns()}
  assert 0.12 < len(keys["heldout"]) / len(all_patterns()) < 0.18


def test_every_choice_of_every_slot_is_trained():
  for slot in ("time", "subject", "frame", "determiner", "modifier", "place"):
    trained = {getattr(p, slot) for p in patterns_of("train")}
    assert trained == {getattr(p, slot) for p in all_patterns()}


@pytest.mark.parametrize("split", SPLITS)
def test_names_belong_to_their_split(split):
  assert {split_of("name", name.lower()) for name in names_of(split)} == {split}


def test_names_are_open():
  # Half the names have two syllables (some 8,000 names), the others three (over a million).
  draws = Draws(0, 0, "train", "test")
  long = [name for _ in range(5000) if len(syllables(name := sample_name(draws, "train"))) == 3]
  assert 2000 < len(long) < 3000
  # A birthday bound: n draws out of 50,000 would repeat about n² / 100,000 times.
  assert len(long) - len(set(long)) < len(long) ** 2 / 100_000


def test_names_can_be_spelled_by_ear():
  names = names_of("train") | names_of("heldout")
  assert len(names) > NUM
  for name in names:
    assert re.fullmatch(r"([BDFGKLMNPRST][aeiou][nlr]?)([bdfgklmnprst][aeiou][nlr]?){1,2}", name)
    assert name[-1] in "aiou"
    assert not re.search(r"(.)\1|e[nlr][^aeiou]|[iu]r[^aeiou]|un[^aeiou]", name.lower())
    assert name.lower() not in surface_words()
    assert "".join(syllables(name)) == name and len(syllables(name)) in (2, 3)


def test_names_of_a_sentence_are_different_and_said_in_order():
  for example in EXAMPLES["train"]:
    assert len(set(example.names)) == len(example.names)
    spoken = example.target if example.task == "biasing" else example.sentence
    positions = [spoken.index(name) for name in example.names]
    assert positions == sorted(positions)


def test_wordings_are_disjoint_and_many():
  for task in WORDINGS:
    for target in LANGUAGES if task == "translate" else (None,):
      train, heldout = (wordings(task, split, target) for split in SPLITS)
      assert len(train) >= 6 and len(heldout) >= 1
      assert not set(train) & set(heldout)
      assert len(set(train)) == len(train)
  texts = [text for task in WORDINGS for text in WORDINGS[task]]
  assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_examples_use_the_wordings_of_their_split(split):
  for example in EXAMPLES[split]:
    if example.task != "question":
      target = example.target_language if example.task == "translate" else None
      asked = "repeat" if example.task == "biasing" else example.task
      instruction = example.instruction.partition(" Names may be ")[0]
      assert instruction in wordings(asked, split, target)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="'dev' is not one of"):
    sample_text_example(0, 0, "dev")
  with pytest.raises(ValueError, match="'it' is not one of"):
    sample_text_example(0, 0, "train", language="it")
  with pytest.raises(ValueError, match="'sing' is not one of"):
    sample_text_example(0, 0, "train", task="sing")
  with pytest.raises(ValueError, match="does not fit task='repeat'"):
    sample_text_example(0, 0, "train", task="repeat", language="en", target_language="de")
  with pytest.raises(ValueError, match="does not fit task='translate'"):
    wordings("translate", "train")
