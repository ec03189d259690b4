"""Hints for recognition: names or rare words of a text, among words that it does not have."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.data.datasets.archives import read_text
from slm_jax.errors import UserError

_WORD = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
  """A list of words that may be said: those of the text that are worth a hint, among distractors.

  Attributes:
    pool: file with a distractor a line, e.g. LibriSpeech's `all_rare_words.txt`, or one that
      `write_pool` has made.
    distractors: number of them.
    common_words: file with a word a line; every word that is not among them is rare, and a hint. "":
      hints are names, words with a capital inside a sentence (not for languages that write all nouns
      so).
    hint_share: of the texts whose own words are among the hints; the others get distractors
      alone, so that a model learns to mistrust a list.
  """

  pool: str
  distractors: int = 50
  common_words: str = ""
  hint_share: float = 1.0

  def __post_init__(self):
    if self.distractors < 1:
      raise ValueError(f"{self.distractors=} must be at least 1")
    if not 0 <= self.hint_share <= 1:
      raise ValueError(f"{self.hint_share=} is not a share")

  def words(self, text: str, rng: np.random.Generator) -> list[str]:
    """The text's own words and exactly `distractors` others, in an order that tells nothing.

    Raises UserError for a pool too small.
    """
    own = self.own_words(text)
    said = {word.lower() for word in _WORD.findall(text)}
    pool, found = _lines(self.pool), []
    for i in rng.permutation(len(pool)):
      if len(found) == self.distractors:
        break
      if not said & set(map(str.lower, _WORD.findall(pool[i]))):
        found.append(pool[i])
    if len(found) < self.distractors:
      raise UserError(
        f"{self.pool} has {len(found)} words that are not said, fewer than "
        f"distractors={self.distractors}; make a larger pool or ask for fewer"
      )
    found += own if rng.random() < self.hint_share else []
    return [found[i] for i in rng.permutation(len(found))]

  def own_words(self, text: str) -> list[str]:
    """Words of a text that are worth a hint, each once, as they are written."""
    if self.common_words:
      common = _word_set(self.common_words)
      words = [word for word in _WORD.findall(text) if word.lower() not in common]
    else:
      words = names_in(text)
    return list(dict.fromkeys(words))

  def describe(self) -> dict[str, Any]:
    """JSON-ready facts that decide the hints, the contents of the files among them."""
    files = {name: getattr(self, name) for name in ("pool", "common_words")}
    digests = {
      name: hashlib.sha256("\n".join(_lines(file)).encode()).hexdigest()
      for name, file in files.items()
      if file
    }
    return {**dataclasses.asdict(self), "words": digests}


def names_in(text: str) -> list[str]:
  """Words with a capital letter, but for the first word of each sentence and "I"."""
  found = []
  for sentence in re.split(r"(?<=[.!?…])\s+", text):
    words = list(_WORD.finditer(sentence))
    for word in words[1:]:
      name = word[0]
      if name[0].isupper() and not re.fullmatch(r"I(['’]\w+)?", name):
        found.append(name)
  return found


def write_pool(path: str | Path, texts: Iterable[str]) -> int:
  """Writes the names of all texts, each once and sorted, as a pool of distractors; returns how many."""
  names = sorted({name for text in texts for name in names_in(text)})
  Path(path).write_text("".join(f"{name}\n" for name in names))
  return len(names)


@functools.cache
def _lines(path: str) -> tuple[str, ...]:
  # The first word, where a count follows it.
  lines = (line.split("\t")[0].strip() for line in read_text(path).splitlines())
  return tuple(dict.fromkeys(filter(None, lines)))


@functools.cache
def _word_set(path: str) -> frozenset[str]:
  return frozenset(word.lower() for word in _lines(path))
