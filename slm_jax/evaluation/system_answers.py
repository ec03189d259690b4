"""Every system's texts of one task, each asked for once."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from slm_jax.evaluation.generation import (
  GenerationSettings,
  Hypothesis,
  SpeechModel,
  answer_texts,
  hypothesise,
  transcribe_with_ctc,
)
from slm_jax.evaluation.kept_texts import Answers, KeptTexts
from slm_jax.evaluation.task_scores import SPOKEN_KINDS


class SpeechExample(Protocol):
  """What an example must offer; any object with these attributes serves.

  `names`, the biasing words of the example, may be left out.
  """

  @property
  def id(self) -> str: ...
  @property
  def task(self) -> str: ...
  @property
  def audio(self) -> np.ndarray: ...  # int16 [S] at 16 kHz
  @property
  def transcript(self) -> str: ...
  @property
  def instruction(self) -> str: ...
  @property
  def target(self) -> str: ...
  @property
  def language(self) -> str: ...
  @property
  def target_language(self) -> str: ...
  @property
  def voice(self) -> str: ...


# How many examples to leave out at the beginning -> the answers to the others.
_Ask = Callable[[int], Iterator[tuple[str, float]]]


class SystemAnswers:
  """Every system's texts of one task."""

  def __init__(
    self,
    model: SpeechModel,
    task: str,
    kind: str,
    examples: Sequence[SpeechExample],
    settings: GenerationSettings,
    prompt_length: int,
    on_progress: Callable[[str, str, int, int], None],
  ):
    self.task, self.kind, self.examples = task, kind, examples
    self.texts: dict[str, list[str]] = {}
    self.seconds: dict[str, float] = {}
    self.first_batch_seconds = 0.0
    self.own_scores: list[float] = []
    self._model, self._settings, self._prompt_length = model, settings, prompt_length
    self._on_progress = on_progress
    self._kept: KeptTexts | None = None
    self._facts: Mapping[str, Any] = {}

  def keep(self, kept: KeptTexts, facts: Mapping[str, Any]) -> None:
    """Takes texts from there, and brings new ones there."""
    self._kept, self._facts = kept, facts

  def add(self, system: str, others: Sequence[int] | None) -> None:
    """Lets a system answer, where it can; `others`: whose audio a shuffled one hears."""
    examples = self.examples
    if system == "slm":
      found = self._collect(system, self._listen([e.audio for e in examples]))
      self.own_scores = [score for _, score in found]
    elif system == "ctc" and self.kind in SPOKEN_KINDS and self._model.has_ctc:
      self._collect(system, self._transcribe)
    elif system == "cascade" and self._model.has_ctc:
      heard = self.texts.get("ctc")
      if heard is None:
        heard = [text for text, _ in self._answers("ctc", self._transcribe)]
      self._collect(system, self._read(heard))
    elif system == "oracle":
      self._collect(system, self._read([e.transcript for e in examples]))
    elif system == "shuffled" and others is not None:
      self._collect(system, self._listen([examples[i].audio for i in others]))
    elif system == "silenced":
      self._collect(system, self._listen([np.zeros_like(e.audio) for e in examples]))

  def _collect(self, system: str, ask: _Ask) -> Answers:
    begin = time.perf_counter()
    found = self._answers(system, ask)
    self.texts[system] = [text for text, _ in found]
    self.seconds[system] = time.perf_counter() - begin
    return found

  def _answers(self, system: str, ask: _Ask) -> Answers:
    """All answers of a system, of which only those are asked for that are not kept."""
    begin, total = time.perf_counter(), len(self.examples)
    found = [] if self._kept is None else self._kept.load(self.task, system, self._facts)
    for answer in ask(len(found)) if len(found) < total else ():
      if system == "slm":
        self.first_batch_seconds = self.first_batch_seconds or time.perf_counter() - begin
      found.append(answer)
      self._on_progress(self.task, system, len(found), total)
      if self._kept is not None:
        complete = len(found) == total
        self._kept.save(self.task, system, self._facts, found, complete=complete)
    return found

  def _listen(self, recordings: Sequence[np.ndarray]) -> _Ask:
    def ask(start: int) -> Iterator[tuple[str, float]]:
      pairs = zip(recordings[start:], self.examples[start:], strict=True)
      requests = ((audio, example.instruction) for audio, example in pairs)
      return _with_scores(
        hypothesise(self._model, requests, self._settings, prompt_length=self._prompt_length)
      )

    return ask

  def _transcribe(self, start: int) -> Iterator[tuple[str, float]]:
    recordings = (example.audio for example in self.examples[start:])
    return _with_scores(transcribe_with_ctc(self._model, recordings, self._settings.batch_size))

  def _read(self, transcripts: Sequence[str]) -> _Ask:
    requests = [
      (transcript, example.instruction)
      for transcript, example in zip(transcripts, self.examples, strict=True)
    ]

    def ask(start: int) -> Iterator[tuple[str, float]]:
      for text in answer_texts(self._model, requests[start:], self._settings):
        yield text, math.nan

    return ask


def _with_scores(found: Iterable[Hypothesis]) -> Iterator[tuple[str, float]]:
  return ((hypothesis.text, hypothesis.score) for hypothesis in found)
