"""Sentence patterns: which slots a sentence fills and how, before any word is chosen.

A pattern is one combination of time slot × subject × frame × determiner × modifier × place. About
15 % of them, by hash, are kept out of training.
"""

import dataclasses
import functools
import itertools

from slm_jax.data.mini_world.splits import Split, split_of

TIMES = ("none", "front", "late")
SUBJECTS = ("name", "names", "profession", "professions")
DETERMINERS = ("number", "definite", "indefinite")
MODIFIERS = ("plain", "colour", "adjective")
PLACES = ("none", "city", "local")
MIN_WORDS = 4
MAX_WORDS = 9

_SUBJECT_WORDS = {"name": 1, "names": 3, "profession": 2, "professions": 2}
_PLACE_WORDS = {"none": 0, "city": 2, "local": 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
  """`determiner` and `modifier` are "none" where the frame has no noun phrase as its object."""

  time: str
  subject: str
  frame: str  # alone: no object; person: a name; thing: a noun phrase; recipient: both
  determiner: str
  modifier: str
  place: str

  @property
  def key(self) -> str:
    """Its name, unique among patterns."""
    return "/".join(dataclasses.astuple(self))

  @property
  def english_words(self) -> int:
    """Words of the English sentence with a one-word time."""
    count = 1 + _SUBJECT_WORDS[self.subject] + _PLACE_WORDS[self.place] + (self.time != "none")
    if self.determiner != "none":
      count += 2 + (self.modifier != "plain")
    return count + {"alone": 0, "thing": 0, "person": 1, "recipient": 2}[self.frame]


@functools.cache
def all_patterns() -> tuple[Pattern, ...]:
  """Every combination whose shortest sentence has a permitted number of words."""
  phrases = tuple(itertools.product(DETERMINERS, MODIFIERS))
  objects = [("alone", "none", "none"), ("person", "none", "none")]
  objects += [(frame, *phrase) for frame in ("thing", "recipient") for phrase in phrases]
  patterns = (
    Pattern(time=t, subject=s, frame=f, determiner=d, modifier=m, place=p)
    for t, s, (f, d, m), p in itertools.product(TIMES, SUBJECTS, objects, PLACES)
  )
  return tuple(p for p in patterns if MIN_WORDS <= p.english_words <= MAX_WORDS)


@functools.cache
def patterns_of(split: Split) -> tuple[Pattern, ...]:
  """The patterns a split may use."""
  return tuple(p for p in all_patterns() if split_of("pattern", p.key) == split)


@functools.cache
def patterns_by_frame(split: Split) -> dict[str, tuple[Pattern, ...]]:
  """The same by frame, so that the sampler can weigh frames rather than combinations."""
  frames = dict.fromkeys(p.frame for p in patterns_of(split))
  return {f: tuple(p for p in patterns_of(split) if p.frame == f) for f in frames}
