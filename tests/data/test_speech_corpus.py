"""The mini world's speech: real voices, split as promised, every drop counted."""

import importlib
import itertools

import numpy as np
import pytest
import seqio

from slm_jax.data import voices
from slm_jax.data.mini_world.examples import target_of
from slm_jax.data.mini_world.instructions import wordings
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.world import sample_sentence
from slm_jax.data.speech_corpus import TASKS, MiniSpeechSource

SIZES = {"train": 48, "validation": 48}


def source(task="repeat", seed=3, **kwargs):
  return MiniSpeechSource(task, SIZES, seed=seed, **kwargs)


def utterances(made, split):
  return [made.utterance(split, index) for index in range(SIZES[split])]


def test_spoken_examples_fit_and_are_loud_enough():
  made = source()
  examples = list(made.make_examples("train", 0, 12))
  assert len(examples) + sum(made.dropped.values()) == 12 and len(examples) >= 11
  for example in examples:
    audio = np.frombuffer(example["audio"], "<i2")
    assert 8_000 < len(audio) <= made.max_samples
    assert np.abs(audio.astype(int)).max() > 5_000
    assert set(example) == set(made.fields)


def test_too_long_is_dropped_and_counted_never_cut():
  made = source(max_samples=30_000)
  lengths = [len(e["audio"]) // 2 for e in made.make_examples("train", 0, 12)]
  assert 0 < len(lengths) < 12 and max(lengths) <= 30_000
  assert made.dropped == {"audio longer than 30000 samples": 12 - len(lengths)}


def test_splits_share_no_voice_name_or_pattern():
  made = source()
  train, validation = (utterances(made, split) for split in SIZES)
  assert {u.voice for u in train} <= set(voices.variants("train"))
  assert {u.voice for u in validation} <= set(voices.held_out_variants())
  for key in ("names", "pattern"):
    seen = []
    for world_split in ("train", "heldout"):
      sentences = (sample_sentence(3, index, world_split) for index in range(48))
      values = (getattr(s, key) for s in sentences)
      flat = itertools.chain.from_iterable(v if isinstance(v, tuple) else (v,) for v in values)
      seen.append(set(flat))
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_said_asked_and_expected(task):
  made = source(task)
  pairs = set()
  for index, utterance in enumerate(utterances(made, "train")):
    if task == "biasing":  # another sentence where the first has no name
      check_list_of_names(utterance)
      continue
    sentence = sample_sentence(made.seed, index, "train", utterance.language)
    assert utterance.transcript == sentence.text(utterance.language)
    assert utterance.names == "|".join(sentence.names)
    pairs.add((utterance.language, utterance.target_language))
    if task == "question":
      assert (utterance.instruction, utterance.target) in sentence.questions(utterance.language)
    else:
      assert utterance.target == target_of(sentence, task, utterance.target_language)
      assert bool(utterance.instruction) == (task != "transcribe")
  every_pair = set(itertools.permutations(LANGUAGES, 2))
  assert task == "biasing" or pairs == (
    every_pair if task == "translate" else {(lang, lang) for lang in LANGUAGES}
  )


def check_list_of_names(utterance):
  said = utterance.names.split("|")
  assert utterance.target == utterance.transcript and all(name in utterance.target for name in said)
  asked, _, listed = utterance.instruction.partition(" Names may be ")
  assert asked in wordings("repeat", "train")
  listed = listed.removesuffix(".").split(", ")
  assert len(set(listed)) == len(listed) == 20 + len(said) and set(said) < set(listed)


def test_pairs_and_wordings_can_be_chosen():
  pairs = {("en", "de"), ("de", "en"), ("es", "en")}
  made = source("translate", pairs=pairs, num_wordings=1)
  train = utterances(made, "train")
  assert {(u.language, u.target_language) for u in train} == pairs
  assert {u.instruction for u in train} == {"Translate to German.", "Translate to English."}
  unseen = source("repeat", wording_split="heldout")
  assert {u.instruction for u in utterances(unseen, "validation")} == set(
    wordings("repeat", "heldout")
  )
  with pytest.raises(ValueError, match="some between"):
    source("translate", pairs={("en", "de"), ("nl", "de")})


def test_a_candidate_depends_on_nothing_but_its_place():
  one, other = source(), source(seed=4)
  backwards = [one.utterance("train", i) for i in reversed(range(48))][::-1]
  assert backwards == utterances(source(), "train")
  assert not {u.transcript for u in backwards} & {u.transcript for u in utterances(other, "train")}
  assert one.fingerprint() == source().fingerprint() != other.fingerprint()
  assert one.fingerprint() != source(max_samples=50_000).fingerprint()


def test_registered_tasks_do_not_share_audio_and_questions_are_never_trained_on():
  registered = importlib.import_module("tasks.mini")
  names = ("mini_text", "mini_ctc", "mini_asr", "mini_ast", "mini_question")
  sources = {name: seqio.TaskRegistry.get(name).source for name in names}
  assert len({made.seed for made in sources.values()}) == len(names)
  trained = {task.name for task in seqio.get_subtasks(seqio.MixtureRegistry.get("mini_slm"))}
  assert trained == {"mini_asr", "mini_ast"}
  assert sources["mini_question"].splits == ("validation",)
  assert registered.VOCABULARY.vocab_size == 2_048
