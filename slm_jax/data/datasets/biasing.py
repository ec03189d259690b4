"""Contextual biasing: recognition with a list of words that may be said, most of which are not."""

import ast
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slm_jax.data.datasets.archives import read_text
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import NotUsed, Transcribe
from slm_jax.data.speech_corpus import Utterance
from slm_jax.errors import UserError

_WORD = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Biased(Transcribe):
  """Speech and a list of hints → what is said.

  The hints are names that the utterance has, or rare words, among distractors that it does not
  have, in an order that tells nothing.

  Attributes:
    instructions: with {hints}.
    distractors: number of them.
    pool: file with a distractor a line, e.g. LibriSpeech's `all_rare_words.txt`, or one that
      `write_pool` has made.
    common_words: file with a word a line; every word that is not among them is rare, and a hint. "":
      hints are names, words with a capital inside a sentence (not for languages that write all nouns
      so).
    hint_share: of the utterances whose own words are among the hints; the others get
      distractors alone, so that a model learns to mistrust a list.
  """

  task: str = "biasing"
  distractors: int = 50
  pool: str
  common_words: str = ""
  hint_share: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.distractors < 1:
      raise ValueError(f"{self.distractors=} must be at least 1")
    if not 0 <= self.hint_share <= 1:
      raise ValueError(f"{self.hint_share=} is not a share")
    if any("{hints}" not in wording for wording in self.instructions):
      raise ValueError("every instruction of a biasing task needs {hints}")

  def utterance(self, record: SpeechRecord) -> Utterance:
    text = self.text(record)
    hints = ", ".join(self.hints(record, text))
    instruction = self.instruction(record, hints=hints)
    return self.filled(record, target=text, instruction=instruction, transcript=text)

  def hints(self, record: SpeechRecord, text: str) -> list[str]:
    """The utterance's own words and the distractors. Raises UserError for a pool too small."""
    own = self.own_words(text)
    said = {word.lower() for word in _WORD.findall(text)}
    rng = self.rng(record, "hints")
    pool = _lines(self.pool)
    if len(pool) < self.distractors:
      raise UserError(
        f"{self.pool} has {len(pool)} words, fewer than distractors={self.distractors}; make a larger "
        "pool or ask for fewer"
      )
    # More are drawn than needed: some may be words of the utterance.
    drawn = rng.permutation(len(pool))[: self.distractors + 2 * len(said)]
    others = [pool[i] for i in drawn if not said & set(map(str.lower, _WORD.findall(pool[i])))]
    found = others[: self.distractors] + (own if rng.random() < self.hint_share else [])
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
    files = {name: getattr(self, name) for name in ("pool", "common_words")}
    digests = {
      name: hashlib.sha256("\n".join(_lines(file)).encode()).hexdigest()
      for name, file in files.items()
      if file
    }
    return {**super().describe(), **files, "words": digests}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedBiasing(Transcribe):
  """As `Biased`, with the lists of Le et al. 2021 for LibriSpeech's test sets, which scores are compared on.

  Attributes:
    lists: file `test-{clean,other}.biasing_{100,500,1000,2000}.tsv` of
      github.com/facebookresearch/fbai-speech/is21_deep_bias/ref: id, text, rare words of the
      text, list of hints, the last two as JSON. Records that are not in it are left out.
  """

  task: str = "biasing"
  lists: str

  def utterance(self, record: SpeechRecord) -> Utterance:
    hints = _biasing_lists(self.lists).get(record.id)
    if hints is None:
      raise NotUsed("not in the biasing list")
    text = self.text(record)
    instruction = self.instruction(record, hints=", ".join(hints))
    return self.filled(record, target=text, instruction=instruction, transcript=text)

  def describe(self) -> dict[str, Any]:
    digest = hashlib.sha256(repr(_biasing_lists(self.lists)).encode()).hexdigest()
    return {**super().describe(), "words": digest}


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


@functools.cache
def _biasing_lists(path: str) -> dict[str, tuple[str, ...]]:
  found = {}
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if not line.strip():
      continue
    columns = line.rstrip("\r").split("\t")
    try:
      key, _, _, hints = columns
      found[key] = tuple(map(str, ast.literal_eval(hints)))
    except (ValueError, SyntaxError, TypeError) as error:
      raise UserError(
        f"{path}:{number} has {len(columns)} columns, expected id, text, rare words and hints, the "
        "last two as JSON lists; download it again"
      ) from error
  return found
