"""What a corpus's record becomes for a task: the instruction and the text expected."""

import abc
import dataclasses
import hashlib
from typing import Any

import numpy as np

from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.languages import code_of, name_of
from slm_jax.data.speech_corpus import Utterance


class NotUsed(Exception):
  """A record that a task leaves out by rule; the text is the rule."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(abc.ABC):
  """A function of a record and a seed; two calls give the same.

  Attributes:
    task: name kept with each example, which decides how answers are scored.
    instructions: wordings, of which each record gets one.
    seed: of every choice.
  """

  task: str
  instructions: tuple[str, ...]
  seed: int = 0

  def __post_init__(self):
    if not self.instructions:
      raise ValueError(f"{type(self).__name__}: {self.instructions=} must hold a wording at least")

  @abc.abstractmethod
  def utterance(self, record: SpeechRecord) -> Utterance:
    """The example's texts. Raises NotUsed."""

  def span(self, record: SpeechRecord) -> tuple[float, float | None]:
    """Seconds of the record's audio that are heard: start, and stop or None for the end."""
    del record
    return 0.0, None

  def describe(self) -> dict[str, Any]:
    """JSON-ready facts that decide the examples."""
    return {"recipe": type(self).__name__, **dataclasses.asdict(self)}

  def rng(self, record: SpeechRecord, purpose: str) -> np.random.Generator:
    """Random numbers of one record for one purpose."""
    digest = hashlib.sha256(f"{self.seed}/{purpose}/{record.id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))

  def instruction(self, record: SpeechRecord, **values: str) -> str:
    """One of the wordings, filled in."""
    wording = self.instructions[self.rng(record, "wording").integers(len(self.instructions))]
    known = {"context": record.context, "question": record.text, **values}
    known["language"] = name_of(record.language)
    if record.target_language:
      known["target_language"] = name_of(record.target_language)
    return " ".join(wording.format_map(known).split())

  def filled(
    self, record: SpeechRecord, *, target: str, instruction: str, transcript: str
  ) -> Utterance:
    """The utterance of a record. Raises NotUsed where there is nothing to be said."""
    if not target.strip():
      raise NotUsed("no text expected")
    return Utterance(
      id=record.id,
      task=self.task,
      language=code_of(record.language),
      target_language=code_of(record.target_language or record.language),
      transcript=transcript,
      instruction=instruction,
      target=target.strip(),
      voice=record.speaker,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcribe(Recipe):
  """Speech → what is said.

  Attributes:
    normalized: the corpus's own normalised text, where it has one; else the text as written.
    lower_case: for corpora in capitals, which LMs have seldom read.
  """

  task: str = "asr"
  normalized: bool = False
  lower_case: bool = False

  def utterance(self, record: SpeechRecord) -> Utterance:
    text = self.text(record)
    return self.filled(record, target=text, instruction=self.instruction(record), transcript=text)

  def text(self, record: SpeechRecord) -> str:
    """The transcript in the form that is asked for; the other form where a record lacks it."""
    forms = (record.text, record.normalized_text)
    text = next(filter(str.strip, reversed(forms) if self.normalized else forms), "")
    return text.lower() if self.lower_case else text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translate(Recipe):
  """Speech → its translation."""

  task: str = "ast"

  def utterance(self, record: SpeechRecord) -> Utterance:
    if not record.translation.strip():
      raise NotUsed("no translation")
    instruction = self.instruction(record)
    return self.filled(
      record, target=record.translation, instruction=instruction, transcript=record.text
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(Recipe):
  """Speech and an instruction → the record's answer.

  The record's own instruction is used where it has one; the wordings serve the others.
  """

  task: str = "answer"

  def utterance(self, record: SpeechRecord) -> Utterance:
    instruction = record.instruction or self.instruction(record)
    return self.filled(
      record, target=record.answer, instruction=instruction, transcript=record.text
    )
