"""Examples: pure functions of their arguments, exact targets, bounded lengths; the tokenizer."""

import hashlib
import subprocess
import sys
import time
from collections import Counter

import pytest

from slm_jax.data.mini_world.biasing import MAX_DISTRACTORS
from slm_jax.data.mini_world.examples import TASK_WEIGHTS, reverse_words, sample_text_example
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.splits import SPLITS
from slm_jax.data.mini_world.train_tokenizer import (
  EOS_ID,
  MODEL_PATH,
  PAD_ID,
  UNK_ID,
  VOCAB_SIZE,
  load_tokenizer,
  train_tokenizer,
)
from slm_jax.data.mini_world.world import sample_sentence

NUM = 3000
EXAMPLES = [sample_text_example(1, i, split) for split in SPLITS for i in range(NUM)]
SENTENCES = [sample_sentence(1, i, split) for split in SPLITS for i in range(400)]
TOKENIZER = load_tokenizer()


def digest(examples):
  return hashlib.sha256("\n".join(map(repr, examples)).encode()).hexdigest()


def test_examples_do_not_depend_on_what_was_drawn_before():
  again = [sample_text_example(1, i, "train") for i in reversed(range(50))][::-1]
  assert again == EXAMPLES[:50]
  assert sample_text_example(2, 0, "train") != EXAMPLES[0]


def test_examples_do_not_depend_on_the_process():
  code = (
    "from slm_jax.data.mini_world.examples import sample_text_example as f;"
    "[print(repr(f(1, i, 'train'))) for i in range(20)]"
  )
  command = [sys.executable, "-c", code]
  printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  assert digest(EXAMPLES[:20]) == hashlib.sha256(printed.rstrip("\n").encode()).hexdigest()


def test_the_text_that_the_frozen_models_learned_has_not_changed():
  # Models are trained on these texts: a change here asks for new ones, and for a new tokenizer.
  assert digest(EXAMPLES) == "03be6013e5467504d5f57b046123aa3d8289e9ce3aa92f319991328957e14005"


def test_translations_share_the_meaning():
  for split in SPLITS:
    for index in range(100):
      sentences = {code: sample_sentence(3, index, split, code) for code in LANGUAGES}
      assert len({id(s.meaning.verb) for s in sentences.values()}) == 1
      assert all(s.meaning == sentences["en"].meaning for s in sentences.values())
      for code in LANGUAGES:
        assert sentences[code].text() == sentences["en"].text(code)
        for name in sentences[code].names:
          assert name in sentences[code].text()


def test_a_translation_example_is_the_sentence_of_the_other_language():
  for index in range(200):
    example = sample_text_example(4, index, "train", task="translate")
    sentence = sample_sentence(4, index, "train")
    assert example.sentence == sentence.text(example.language)
    assert example.target == sentence.text(example.target_language)
    assert example.target_language != example.language


def test_the_same_text_means_the_same_in_every_language():
  # Different meanings never share a text: each sentence has one translation.
  for code in LANGUAGES:
    meanings = {}
    for sentence in SENTENCES:
      known = meanings.setdefault(sentence.text(code), sentence.text("en"))
      assert known == sentence.text("en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_said_in_the_sentence_or_are_its_colour(language):
  for sentence in SENTENCES:
    questions = sentence.questions(language)
    assert questions
    assert len({question for question, _ in questions}) == len(questions)
    text = sentence.text(language)
    thing = sentence.meaning.thing
    for _, answer in questions:
      uninflected = thing and thing.modifier and answer == thing.modifier.forms[language][0]
      assert answer in text or answer[0].upper() + answer[1:] in text or uninflected


def test_the_answers_follow_from_the_meaning():
  """Question by question against the slots of the meaning, in English."""
  for sentence in SENTENCES:
    meaning = sentence.meaning
    asked = dict(sentence.questions("en"))
    english = {q.split(" ")[0] + " " + q.split(" ")[1]: a for q, a in asked.items()}
    number = meaning.thing.number if meaning.thing else None
    colour = meaning.pattern.modifier == "colour"
    assert ("When is" in english) == (meaning.time is not None)
    assert english.get("When is") == (meaning.time.key if meaning.time else None)
    places = [a for q, a in asked.items() if q.startswith("Where ")]
    assert places == ([meaning.place.key] if meaning.place else [])
    colours = [a for q, a in asked.items() if q.startswith("What colour ")]
    assert colours == ([meaning.thing.modifier.key] if meaning.thing and colour else [])
    numbers = [a for q, a in asked.items() if q.startswith("How many ")]
    subject_number = meaning.subject.number
    assert numbers == [n.key for n in (number, subject_number) if n]
    receivers = [a for q, a in asked.items() if q.startswith("Who gets ")]
    assert receivers == ([meaning.person] if meaning.pattern.frame == "recipient" else [])
    doers = [a for q, a in asked.items() if q.startswith("Who ") and q[4:8] != "gets"]
    if meaning.subject.names:
      assert doers == [" and ".join(meaning.subject.names)]
    else:
      assert doers[0].split(" ")[1] in meaning.subject.profession.forms["en"]


def test_targets_of_the_other_tasks():
  for index in range(200):
    sentence = sample_sentence(6, index, "train")
    targets = {
      task: sample_text_example(6, index, "train", task=task).target for task in TASK_WEIGHTS
    }
    assert targets["repeat"] == sentence.text()
    assert targets["list_names"] == (", ".join(sentence.names) or "none")
    assert targets["continue"] == sentence.continuation()
    assert targets["reply"] == sentence.reply()
    assert targets["reverse"].rstrip(".").split(" ") == sentence.text().rstrip(".").split(" ")[::-1]
    assert targets["question"] in dict(sentence.questions()).values()
    if sentence.names:
      # Whoever has the thing acts next: the receiver, who is named last, or the subject.
      actor = sentence.names[-1 if sentence.meaning.pattern.frame == "recipient" else 0]
      assert actor in targets["continue"]


def test_a_list_gives_back_the_names_that_were_misheard():
  misheard = listed = 0
  for index in range(300):
    example = sample_text_example(6, index, "train", task="biasing")
    _, _, names = example.instruction.partition(" Names may be ")
    names = names.removesuffix(".").split(", ") if names else []
    assert len(names) == len(set(names)) <= MAX_DISTRACTORS + len(example.names)
    if set(example.names) & set(names):
      assert set(example.names) <= set(names)
      listed += 1
    else:  # nothing in the list says better than what was heard
      assert example.sentence == example.target
    misheard += example.sentence != example.target
  assert 60 < misheard < listed < 240


def test_reversing_twice_changes_nothing():
  assert reverse_words("Tomeli buys three apples.") == "apples three buys Tomeli."
  for sentence in SENTENCES:
    for code in LANGUAGES:
      assert reverse_words(reverse_words(sentence.text(code))) == sentence.text(code)


def test_sentences_are_4_to_9_words_and_end_in_the_only_full_stop():
  lengths = Counter()
  for sentence in SENTENCES:
    for code in LANGUAGES:
      text = sentence.text(code)
      lengths[len(text.split())] += 1
      assert 4 <= len(text.split()) <= 9 and len(text) <= 56
      assert text[0].isupper() and text.endswith(".")
      assert all(c.isalpha() or c in " '" for c in text[:-1])
  assert all(lengths[n] > 0.02 * sum(lengths.values()) for n in range(4, 10))


def test_repeating_and_translating_are_half():
  tasks = Counter(example.task for example in EXAMPLES)
  assert 0.48 < (tasks["repeat"] + tasks["translate"]) / len(EXAMPLES) < 0.56
  assert set(tasks) == set(TASK_WEIGHTS)
  languages = Counter(example.language for example in EXAMPLES)
  assert min(languages.values()) > 0.2 * len(EXAMPLES)
  directions = Counter((e.language, e.target_language) for e in EXAMPLES if e.task == "translate")
  assert len(directions) == 12


def test_lengths_in_pieces():
  for example in EXAMPLES:
    sentence, instruction, target = (
      len(TOKENIZER.encode(text))
      for text in (example.sentence, example.instruction, example.target)
    )
    assert sentence + instruction + 1 <= (128 if example.task == "biasing" else 40)
    assert target <= 28
    assert instruction <= {"question": 16, "biasing": 104}.get(example.task, 8)


def test_the_tokenizer_spells_everything():
  assert TOKENIZER.get_piece_size() == VOCAB_SIZE == 2048
  assert (TOKENIZER.pad_id(), TOKENIZER.eos_id(), TOKENIZER.unk_id()) == (PAD_ID, EOS_ID, UNK_ID)
  for example in EXAMPLES:
    for text in (example.sentence, example.instruction, example.target):
      ids = TOKENIZER.encode(text)
      assert UNK_ID not in ids
      assert TOKENIZER.decode(ids) == text


def test_a_name_costs_about_a_piece_a_syllable():
  for split in SPLITS:
    names = [name for example in EXAMPLES for name in example.names if split in example.id]
    pieces = [len(TOKENIZER.encode(name)) for name in names]
    assert max(pieces) <= 5 and sum(pieces) / len(pieces) < 3


def test_training_the_tokenizer_is_repeatable():
  first, second = (train_tokenizer(num_sentences=400, vocab_size=400) for _ in range(2))
  assert first == second


def test_the_tokenizer_is_the_recorded_one():
  recorded = MODEL_PATH.with_name(MODEL_PATH.name + ".sha256").read_text().split()
  assert recorded == [hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest(), MODEL_PATH.name]


def test_examples_are_made_fast_enough_for_training():
  start = time.process_time()
  for index in range(1000):
    sample_text_example(8, index, "train")
  assert 1000 / (time.process_time() - start) > 2000
