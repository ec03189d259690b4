"""Registers the public corpora as SeqIO tasks with given wordings, and mixes them."""

import functools
from collections.abc import Mapping, Sequence

import seqio

from slm_jax.data.datasets import covost2, fleurs, librispeech
from slm_jax.data.datasets.corpus_source import CorpusSource
from slm_jax.data.datasets.languages import code_of
from slm_jax.data.datasets.recipes import Recipe, Transcribe, Translate
from slm_jax.data.example_source import ExampleSource
from slm_jax.data.speech_tasks import add_speech_task

METRICS = {
  "transcription": ("wer", "cer"),
  "translation": ("bleu", "chrf"),
  "answer": ("exact",),
}

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
    """Registers one task of a kind of `METRICS`; returns its name."""
    full = f"{self.prefix}_{name}"
    add_speech_task(
      full, source, self.vocabulary, metrics=METRICS[kind], kind=kind, cached_only=False
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
  return CorpusSource(versioned, recipe, module=builder.__module__, **options)
