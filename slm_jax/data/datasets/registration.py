"""Registers the public corpora as SeqIO tasks with given wordings, and mixes them."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import seqio

from slm_jax.data.datasets import (
  covost2,
  europarl_st,
  fleurs,
  librispeech,
  multilingual_librispeech,
  speech_multiwoz,
  spoken_alpaca,
  spoken_squad,
  voxpopuli,
)
from slm_jax.data.datasets.biasing import Biased, ListedBiasing
from slm_jax.data.datasets.continuation import Continue
from slm_jax.data.datasets.corpus_source import CorpusSource
from slm_jax.data.datasets.languages import code_of
from slm_jax.data.datasets.recipes import Answer, Recipe, Transcribe, Translate
from slm_jax.data.example_source import ExampleSource
from slm_jax.data.hints import Hints
from slm_jax.data.speech_tasks import add_speech_task
from slm_jax.evaluation.task_scores import KIND_METRICS

# Where word lists and alignments lie, beside the archives that TFDS builds from.
MANUAL_DIR = Path(
  os.environ.get("SLM_JAX_MANUAL_DIR", "~/tensorflow_datasets/downloads/manual")
).expanduser()
BIASING_LISTS = MANUAL_DIR / "is21_deep_bias"
ALIGNMENTS = MANUAL_DIR / "LibriSpeech-Alignments.zip"
TEST_LISTS = tuple((s, n) for s in ("clean", "other") for n in (100, 500, 1000, 2000))

Wordings = Mapping[str, tuple[str, ...]]


class CorpusTasks:
  """Registers tasks named `<prefix>_<corpus>…`; `names` are those so far."""

  def __init__(self, prefix: str, wordings: Wordings, vocabulary: seqio.Vocabulary):
    """Args:

    prefix: of the names, e.g. "slm_paper".
    wordings: task of `wordings.PAPER` → instructions; each example gets one of them.
    vocabulary: of the LM.
    """
    self.prefix = prefix
    self.wordings = wordings
    self.vocabulary = vocabulary
    self.names: list[str] = []

  def add(self, name: str, source: ExampleSource, kind: str) -> str:
    """Registers one task of a kind of `KIND_METRICS`; returns its name."""
    full = f"{self.prefix}_{name}"
    add_speech_task(
      full, source, self.vocabulary, metrics=KIND_METRICS[kind], kind=kind, cached_only=False
    )
    self.names.append(full)
    return full

  def librispeech(self) -> str:
    """Recognition of LibriSpeech, in lower case; its test sets are splits."""
    recipe = Transcribe(instructions=self.wordings["asr"], lower_case=True)
    return self.add("librispeech", librispeech.librispeech(recipe), "transcription")

  def covost2_asr(self, language: str) -> str:
    """Recognition of the Common Voice recordings that CoVoST 2 uses."""
    target = "de" if language == "en" else "en"
    recipe = Transcribe(instructions=self.wordings["asr"])
    source = _corpus(f"covost2/{language}_{target}", covost2.Covost2, recipe)
    return self.add(f"covost2_{code_of(language)}_asr", source, "transcription")

  def covost2(self, source: str, target: str) -> str:
    """Translation of CoVoST 2; languages are its own codes."""
    recipe = Translate(instructions=self.wordings["ast"])
    corpus = _corpus(f"covost2/{source}_{target}", covost2.Covost2, recipe)
    return self.add(f"covost2_{code_of(source)}_{code_of(target)}", corpus, "translation")

  def fleurs_asr(self, language: str) -> str:
    """Recognition of FLEURS, scored on its normalised transcripts; `language` is its own code."""
    recipe = Transcribe(instructions=self.wordings["asr"], normalized=True)
    source = _corpus(f"fleurs/{language}", fleurs.Fleurs, recipe)
    return self.add(f"fleurs_{code_of(language)}_asr", source, "transcription")

  def fleurs(self, source: str, target: str) -> str:
    """Translation of FLEURS; languages are its own codes."""
    recipe = Translate(instructions=self.wordings["ast"])
    corpus = _corpus(f"fleurs/{source}-{target}", fleurs.Fleurs, recipe)
    return self.add(f"fleurs_{code_of(source)}_{code_of(target)}", corpus, "translation")

  def multilingual_librispeech(self, language: str) -> str:
    """Recognition of MLS; `language` is its English name in lower case."""
    recipe = Transcribe(instructions=self.wordings["asr"])
    builder = multilingual_librispeech.MultilingualLibrispeech
    source = _corpus(f"multilingual_librispeech/{language}", builder, recipe)
    code = multilingual_librispeech.LANGUAGES[language]
    return self.add(f"multilingual_librispeech_{code}", source, "transcription")

  def voxpopuli(self, language: str) -> str:
    """Recognition of VoxPopuli, scored on its normalised transcripts."""
    recipe = Transcribe(instructions=self.wordings["asr"], normalized=True)
    source = _corpus(f"voxpopuli/{language}", voxpopuli.Voxpopuli, recipe)
    return self.add(f"voxpopuli_{language}", source, "transcription")

  def europarl_st(self, source: str, target: str) -> str:
    """Translation of Europarl-ST."""
    recipe = Translate(instructions=self.wordings["ast"])
    corpus = _corpus(f"europarl_st/{source}_{target}", europarl_st.EuroparlSt, recipe)
    return self.add(f"europarl_st_{source}_{target}", corpus, "translation")

  def alpaca(self) -> str:
    """Alpaca with spoken inputs; each example brings its own instruction."""
    recipe = Answer(task="instruction", instructions=("Answer.",))
    source = _corpus(
      "spoken_alpaca", spoken_alpaca.SpokenAlpaca, recipe, splits=_same("train", "validation")
    )
    return self.add("spoken_alpaca", source, "answer")

  def questions(self) -> str:
    """SQuAD's questions spoken, its passages in the instruction."""
    recipe = Answer(task="question", instructions=self.wordings["question"])
    source = _corpus(
      "spoken_squad", spoken_squad.SpokenSquad, recipe, splits=_same("train", "validation")
    )
    return self.add("spoken_squad", source, "answer")

  def dialogue_state(self, config: str) -> str:
    """Dialogue state tracking of DSTC11's speech MultiWOZ; `config` is a key of its `PARTS`."""
    recipe = Answer(task="dialogue_state", instructions=self.wordings["dialogue_state"])
    splits = _same(*speech_multiwoz.PARTS[config])
    builder = speech_multiwoz.SpeechMultiwoz
    source = _corpus(f"speech_multiwoz/{config}", builder, recipe, splits=splits)
    return self.add(f"speech_multiwoz_{config}", source, "dialogue_state")

  def biasing(self, distractors: int) -> str:
    """LibriSpeech with rare words of each utterance among distractors, as Le et al. train."""
    recipe = Biased(
      instructions=self.wordings["biasing"],
      lower_case=True,
      hints=Hints(
        distractors=distractors,
        pool=str(BIASING_LISTS / "words" / "all_rare_words.txt"),
        common_words=str(BIASING_LISTS / "words" / "common_words_5k.txt"),
      ),
    )
    source = librispeech.librispeech(recipe)
    return self.add(f"librispeech_biasing_{distractors}", source, "biasing")

  def listed_biasing(self, subset: str, size: int) -> str:
    """LibriSpeech's test-`subset` with the published lists of `size` words, as split "test"."""
    lists = str(BIASING_LISTS / "ref" / f"test-{subset}.biasing_{size}.tsv")
    recipe = ListedBiasing(instructions=self.wordings["biasing"], lower_case=True, lists=lists)
    splits = {"test": (f"test_{subset}",)}
    source = CorpusSource(librispeech.NAME, recipe, splits, read=librispeech.read_record)
    return self.add(f"librispeech_listed_biasing_{subset}_{size}", source, "biasing")

  def continuation(self) -> str:
    """The beginnings of LibriSpeech's utterances, continued."""
    recipe = Continue(
      instructions=self.wordings["continuation"], lower_case=True, alignments=str(ALIGNMENTS)
    )
    return self.add("librispeech_continuation", librispeech.librispeech(recipe), "answer")


def register_all(
  prefix: str, wordings: Wordings, vocabulary: seqio.Vocabulary
) -> dict[str, list[str]]:
  """Registers every corpus as tasks; returns the names of those to train on, by kind of task.

  The rest are for scoring: FLEURS and Europarl-ST, biasing with published lists, dialogue states,
  questions and continuation, which the paper asks of a model that was never trained on them.
  """
  tasks = CorpusTasks(prefix, wordings, vocabulary)
  train = {
    "asr": [
      tasks.librispeech(),
      *(
        tasks.multilingual_librispeech(language)
        for language in multilingual_librispeech.LANGUAGES
        if language != "english"  # LibriSpeech is
      ),
      *(tasks.voxpopuli(language) for language in voxpopuli.LANGUAGES),
      *(tasks.covost2_asr(language) for language in ("en", *covost2.INTO_ENGLISH)),
    ],
    "ast": [tasks.covost2(language, "en") for language in covost2.INTO_ENGLISH],
    "instruction": [tasks.alpaca()],
  }
  for language in covost2.FROM_ENGLISH:
    tasks.covost2("en", language)
  for language in fleurs.LANGUAGES:
    tasks.fleurs_asr(language)
    if language != "en_us":
      tasks.fleurs(language, "en_us")
  for language in europarl_st.LANGUAGES:
    if language != "en":
      tasks.europarl_st(language, "en")
      tasks.europarl_st("en", language)
  for config in speech_multiwoz.PARTS:
    tasks.dialogue_state(config)
  tasks.biasing(100)
  for subset, size in TEST_LISTS:
    tasks.listed_biasing(subset, size)
  tasks.questions()
  tasks.continuation()
  return train


def mix_kinds(
  prefix: str, kinds: Mapping[str, Sequence[str]], shares: Mapping[str, float], temperature: float
) -> None:
  """Registers the mixture `prefix` of the mixtures `<prefix>_<kind>`.

  Args:
    prefix: name of the whole.
    kinds: kind → tasks.
    shares: kind → share of the examples drawn.
    temperature: within a kind, see `mix_by_size`.

  Raises:
    ValueError: shares and kinds do not go together.
  """
  if set(shares) != set(kinds):
    raise ValueError(f"{prefix}: shares of {sorted(shares)} for {sorted(kinds)}")
  parts = [
    (mix_by_size(f"{prefix}_{kind}", tasks, temperature), shares[kind])
    for kind, tasks in kinds.items()
  ]
  seqio.MixtureRegistry.add(prefix, parts)


def mix_by_size(name: str, tasks: Sequence[str], temperature: float) -> str:
  """Registers a mixture with rates (training examples) ** (1 / temperature); returns its name.

  Temperature 1 draws every example equally often; a higher one gives small corpora more.

  Raises:
    ValueError: the temperature is below 1.
  """
  if temperature < 1:
    raise ValueError(f"{name}: {temperature=} must be at least 1")
  rate = functools.partial(seqio.mixing_rate_num_examples, temperature=temperature)
  seqio.MixtureRegistry.add(name, list(tasks), default_rate=rate)
  return name


def _corpus(name: str, builder: type, recipe: Recipe, **options) -> CorpusSource:
  versioned = f"{name}:{builder.VERSION}"
  return CorpusSource(versioned, recipe, **options)


def _same(*splits: str) -> dict[str, tuple[str]]:
  return {split: (split,) for split in splits}
