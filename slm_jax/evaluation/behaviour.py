"""What kind of text an answer is, whatever it is worth: followed, refused, looped or empty. Rules of version 1.

Rates stand beside scores: a score says how often a model is right, a rate what it does when it is not.
"""

import collections
import re
from collections.abc import Mapping, Sequence

import numpy as np

from slm_jax.evaluation.normalisers import normalise_basic
from slm_jax.evaluation.statistics import Statistics, dialogue_state, hits, mean

RATES = ("followed", "refused", "looped", "empty")
# Of the system that hears silence: texts that are not empty.
INSERTED = "inserted"
# A change of the rules takes a new id, as of normalisers.
RULES = "behaviour-1"
_SPOKEN = ("transcription", "biasing")
_REFUSAL = re.compile(
  r"\b(?:(?:i|we) (?:can ?not|can't|am unable|am not able|do not understand|don't understand)"
  r"|i'm (?:sorry|unable|not able)|i am sorry|sorry i|as an ai|unable to (?:answer|process|hear)"
  r"|es tut mir leid|ich kann (?:das |die |den |es )?nicht|lo siento|no puedo"
  r"|je suis désolée?|je ne peux pas)\b"
)
# Up to four words four times in a row; or, where words are not apart, up to ten characters eight times.
_LOOP = re.compile(r"(?<!\S)(\S+(?: \S+){0,3})(?: \1){3}(?!\S)|(\S{1,10}?)\2{7}")
# An answer may have so many words more than twice its reference's.
_SPARE_WORDS = 10


def refuses(text: str) -> bool:
  """Whether an answer says, in English, German, Spanish or French, that it will not or cannot."""
  return bool(_REFUSAL.search(normalise_basic(text)))


def loops(text: str) -> bool:
  """Whether a phrase of one to four words stands four times in a row, or one to ten characters eight times."""
  return bool(_LOOP.search(normalise_basic(text)))


class Languages:
  """Tells languages apart by the words of an evaluation's own texts."""

  def __init__(self, texts: Sequence[tuple[str, str]]):
    """`texts`: (language, text)."""
    self._words: dict[str, set[str]] = collections.defaultdict(set)
    for language, text in texts:
      self._words[language].update(normalise_basic(text).split())

  def speaks(self, text: str, language: str) -> bool:
    """Whether no other language knows more of the text's words; True where none knows any."""
    words = normalise_basic(text).split()
    known = {name: sum(word in own for word in words) for name, own in self._words.items()}
    return known.get(language, 0) == max(known.values(), default=0)


def follows(
  text: str,
  *,
  kind: str,
  target: str,
  transcript: str,
  instruction: str,
  language: str,
  languages: Languages,
) -> bool:
  """Whether an answer does what was asked, right or wrong.

  It is not empty, refuses nothing, does not loop and has at most ten words more than twice the
  target's (each unless the target does so itself); it is not the instruction; it is in the target's
  `language`, unless it is a dialogue state; unless transcription was asked for or the target is the
  transcript, it is not the transcript; and a dialogue state can be read as one.
  """
  said, expected = normalise_basic(text), normalise_basic(target)
  if said == expected:
    return True
  if not said or refuses(text) or loops(text) and not loops(target):
    return False
  if len(said.split()) > 2 * len(expected.split()) + _SPARE_WORDS:
    return False
  if said == normalise_basic(instruction):
    return False
  if kind not in _SPOKEN and said == normalise_basic(transcript):
    return False
  if kind == "dialogue_state":
    return dialogue_state(text) is not None
  return languages.speaks(text, language)


def rates(
  texts: Sequence[str],
  *,
  kind: str,
  targets: Sequence[str],
  transcripts: Sequence[str],
  instructions: Sequence[str],
  languages: Sequence[str],
  spoken_languages: Sequence[str],
) -> Mapping[str, Statistics]:
  """`RATES` of a system's answers.

  Args:
    texts, targets, transcripts, instructions: of each example.
    kind: key of `task_scores.KIND_METRICS`.
    languages: of the targets.
    spoken_languages: of the transcripts.
  """
  known = Languages(
    [*zip(languages, targets, strict=True), *zip(spoken_languages, transcripts, strict=True)]
  )
  rows = list(zip(texts, targets, transcripts, instructions, languages, strict=True))
  found = {
    "followed": [
      follows(
        text,
        kind=kind,
        target=target,
        transcript=transcript,
        instruction=instruction,
        language=language,
        languages=known,
      )
      for text, target, transcript, instruction, language in rows
    ],
    "refused": [refuses(text) and not refuses(target) for text, target, *_ in rows],
    "looped": [loops(text) and not loops(target) for text, target, *_ in rows],
    "empty": [not text.strip() and bool(target.strip()) for text, target, *_ in rows],
  }
  return {name: rate(name, values) for name, values in found.items()}


def rate(name: str, values: Sequence[bool]) -> Statistics:
  """The share of texts that a rule holds of."""
  return Statistics(
    metric=name,
    rows=hits(np.asarray(values, np.float64)),
    value=mean,
    details=("texts",),
    normaliser=RULES,
  )
