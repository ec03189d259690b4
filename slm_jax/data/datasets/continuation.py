"""Speech continuation: the first part of an utterance is heard, the rest of its text expected."""

import dataclasses
import functools
import hashlib
import re
from pathlib import PurePosixPath
from typing import Any

from slm_jax.data.datasets.archives import decode, members
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import NotUsed, Transcribe
from slm_jax.data.speech_corpus import Utterance
from slm_jax.errors import UserError

_LINE = re.compile(r'^(\S+) "(.*)" "([\d.,]*)"$')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continue(Transcribe):
  """The beginning of speech → the words that follow.

  Where the cut lies in the text is known from word alignments, never guessed: a recording is cut
  between two words, after a share of them.

  Attributes:
    alignments: LibriSpeech-Alignments.zip of zenodo.org/records/2619474, packed or unpacked:
      <set>/<speaker>/<chapter>/<speaker>-<chapter>.alignment.txt, in each line id, words and
      their ends in seconds.
    min_share: of the words that are heard at least.
    max_share: at most.
    min_words: on either side of the cut; shorter utterances are left out.
  """

  task: str = "continuation"
  alignments: str
  min_share: float = 0.3
  max_share: float = 0.7
  min_words: int = 3

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.min_share <= self.max_share < 1:
      raise ValueError(f"{self.min_share=}, {self.max_share=} are no range within 0…1")
    if self.min_words < 1:
      raise ValueError(f"{self.min_words=} must be at least 1")

  def utterance(self, record: SpeechRecord) -> Utterance:
    words, number, _ = self._cut(record)
    heard, rest = (" ".join(part) for part in (words[:number], words[number:]))
    lower = str.lower if self.lower_case else str
    return self.filled(
      record,
      target=lower(rest),
      instruction=self.instruction(record),
      transcript=lower(heard),
    )

  def span(self, record: SpeechRecord) -> tuple[float, float | None]:
    return 0.0, self._cut(record)[2]

  def describe(self) -> dict[str, Any]:
    digest = hashlib.sha256(repr(_alignments(self.alignments)).encode()).hexdigest()
    return {**super().describe(), "words": digest}

  def _cut(self, record: SpeechRecord) -> tuple[list[str], int, float]:
    """The words, how many are heard, and the second in the middle of the pause behind them."""
    aligned = _aligned(self.alignments, record.id)
    if aligned is None:
      raise NotUsed("no alignment")
    places = [i for i, word in enumerate(aligned) if word[0]]
    words = [aligned[i][0] for i in places]
    if words != record.text.upper().split():
      raise NotUsed("alignment of another text")
    rng = self.rng(record, "cut")
    number = round(len(words) * rng.uniform(self.min_share, self.max_share))
    if min(number, len(words) - number) < self.min_words:
      raise NotUsed(f"fewer than {self.min_words} words on a side of the cut")
    last = places[number - 1]
    end = aligned[last][1]
    # An empty word is a pause.
    following = aligned[last + 1]
    return words, number, (end + following[1]) / 2 if not following[0] else end


def _aligned(path: str, key: str) -> list[tuple[str, float]] | None:
  """Words of an utterance, "" for a pause, and their ends in seconds; None if there are none."""
  found = _alignments(path).get(key)
  if found is None:
    return None
  return [(word, float(end)) for word, end in zip(*(f.split(",") for f in found), strict=True)]


@functools.cache
def _alignments(path: str) -> dict[str, tuple[str, str]]:
  """Utterance → its words and their ends, as they stand in the file: parsed, they fill gigabytes."""
  found = {}
  for name, read in members(path):
    if not PurePosixPath(name).name.endswith(".alignment.txt"):
      continue
    for number, line in enumerate(decode(read(), f"{path}:{name}").splitlines(), start=1):
      place = _LINE.match(line.strip())
      if not place or place[2].count(",") != place[3].count(","):
        raise UserError(
          f"{path}:{name}:{number} is not an id, its words and as many ends; download it again"
        )
      found[place[1]] = place[2], place[3]
  if not found:
    raise UserError(f"{path} holds no *.alignment.txt; expected LibriSpeech-Alignments")
  return found
