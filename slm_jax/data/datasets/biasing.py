"""Contextual biasing: recognition with a list of words that may be said, most of which are not."""

import ast
import dataclasses
import functools
import hashlib
from typing import Any

from slm_jax.data.datasets.archives import read_text
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import NotUsed, Transcribe
from slm_jax.data.hints import Hints
from slm_jax.data.speech_corpus import Utterance
from slm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Biased(Transcribe):
  """Speech and a list of hints → what is said. The utterance's own words of that sort are its biasing words.

  Attributes:
    instructions: with {hints}.
    hints: which.
  """

  task: str = "biasing"
  hints: Hints

  def __post_init__(self):
    super().__post_init__()
    if any("{hints}" not in wording for wording in self.instructions):
      raise ValueError("every instruction of a biasing task needs {hints}")

  def utterance(self, record: SpeechRecord) -> Utterance:
    text = self.text(record)
    listed = ", ".join(self.hints.words(text, self.rng(record, "hints")))
    instruction = self.instruction(record, hints=listed)
    filled = self.filled(record, target=text, instruction=instruction, transcript=text)
    return dataclasses.replace(filled, names="|".join(self.hints.own_words(text)))

  def describe(self) -> dict[str, Any]:
    return {**super().describe(), **self.hints.describe()}


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
    found = _biasing_lists(self.lists).get(record.id)
    if found is None:
      raise NotUsed("not in the biasing list")
    rare, hints = found
    text = self.text(record)
    instruction = self.instruction(record, hints=", ".join(hints))
    filled = self.filled(record, target=text, instruction=instruction, transcript=text)
    return dataclasses.replace(filled, names="|".join(rare))

  def describe(self) -> dict[str, Any]:
    digest = hashlib.sha256(repr(_biasing_lists(self.lists)).encode()).hexdigest()
    return {**super().describe(), "words": digest}


@functools.cache
def _biasing_lists(path: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
  """Id → the text's own rare words, and the list of hints."""
  found = {}
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if not line.strip():
      continue
    columns = line.rstrip("\r").split("\t")
    try:
      key, _, *lists = columns
      rare, hints = (tuple(map(str, ast.literal_eval(words))) for words in lists)
      found[key] = (rare, hints)
    except (ValueError, SyntaxError, TypeError) as error:
      raise UserError(
        f"{path}:{number} has {len(columns)} columns, expected id, text, rare words and hints, the "
        "last two as JSON lists; download it again"
      ) from error
  return found
