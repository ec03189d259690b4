"""What a sentence says, in no language: the slots of a pattern filled with words and names."""

import dataclasses

from slm_jax.data.mini_world.lexicon import Word, load_lexicon
from slm_jax.data.mini_world.names import sample_name
from slm_jax.data.mini_world.patterns import Pattern, patterns_by_frame
from slm_jax.data.mini_world.splits import Draws, Split

FRAME_WEIGHTS = {"alone": 0.15, "person": 0.2, "thing": 0.48, "recipient": 0.17}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
  """One or two names, "the PROFESSION", or "NUMBER PROFESSIONS"."""

  names: tuple[str, ...] = ()
  profession: Word | None = None
  number: Word | None = None

  @property
  def plural(self) -> bool:
    """Whether the verb is plural."""
    return len(self.names) == 2 or self.number is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
  """A noun phrase: "three [red] apples", "the [red] apple" or "a [red] apple"."""

  noun: Word
  determiner: str
  number: Word | None
  modifier: Word | None

  @property
  def plural(self) -> bool:
    """Only counted things are plural."""
    return self.number is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meaning:
  """A filled pattern. `person`: the object of frame "person", the receiver of frame "recipient"."""

  pattern: Pattern
  subject: Subject
  verb: Word
  thing: Thing | None
  person: str | None
  place: Word | None
  time: Word | None

  @property
  def names(self) -> tuple[str, ...]:
    """Names in the order in which every language says them."""
    return self.subject.names + ((self.person,) if self.person else ())


def _sample_names(draws: Draws, split: Split, count: int) -> list[str]:
  names: list[str] = []
  while len(names) < count:
    name = sample_name(draws, split)
    if name not in names:
      names.append(name)
  return names


def _sample_thing(draws: Draws, pattern: Pattern, verb: Word) -> Thing:
  lexicon = load_lexicon()
  noun_class = draws.choice(verb.classes)
  modifier = None
  if pattern.modifier == "colour":
    modifier = draws.choice(lexicon.by_kind["colour"])
  elif pattern.modifier == "adjective":
    modifier = draws.choice(lexicon.adjectives_by_class[noun_class])
  return Thing(
    noun=draws.choice(lexicon.nouns_by_class[noun_class]),
    determiner=pattern.determiner,
    number=draws.choice(lexicon.by_kind["number"]) if pattern.determiner == "number" else None,
    modifier=modifier,
  )


def sample_meaning(draws: Draws, split: Split) -> Meaning:
  """Draws a pattern of the split and fills it; every name in it is new and of the split."""
  lexicon = load_lexicon()
  pattern = draws.choice(patterns_by_frame(split)[draws.weighted(FRAME_WEIGHTS)])
  verb = draws.choice(lexicon.verbs_by_frame[pattern.frame])
  has_person = pattern.frame in ("person", "recipient")
  num_subject_names = {"name": 1, "names": 2}.get(pattern.subject, 0)
  names = _sample_names(draws, split, num_subject_names + has_person)
  if num_subject_names:
    subject = Subject(names=tuple(names[:num_subject_names]))
  else:
    profession = draws.choice(lexicon.by_kind["profession"])
    counted = pattern.subject == "professions"
    number = draws.choice(lexicon.by_kind["number"]) if counted else None
    subject = Subject(profession=profession, number=number)
  has_thing = pattern.frame in ("thing", "recipient")
  return Meaning(
    pattern=pattern,
    subject=subject,
    verb=verb,
    thing=_sample_thing(draws, pattern, verb) if has_thing else None,
    person=names[-1] if has_person else None,
    place=None if pattern.place == "none" else draws.choice(lexicon.places[pattern.place]),
    time=None if pattern.time == "none" else draws.choice(lexicon.by_kind["time"]),
  )
