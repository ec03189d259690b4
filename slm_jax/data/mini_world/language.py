"""What the four grammars share: clauses, follow-ups, replies and questions."""

import abc
import dataclasses

from slm_jax.data.mini_world.lexicon import Word
from slm_jax.data.mini_world.meaning import Meaning, Subject, Thing


def join(*parts: str) -> str:
  """The non-empty parts with single spaces between them."""
  return " ".join(part for part in parts if part)


def capitalise(text: str) -> str:
  """Upper-cases the first letter and leaves the rest alone."""
  return text[0].upper() + text[1:]


class Language(abc.ABC):
  """One grammar. Methods return phrases without final punctuation unless they say otherwise."""

  code: str
  conjunction: str
  then: str
  yes: str

  # Phrases -------------------------------------------------------------------------------------

  @abc.abstractmethod
  def nouns(self, noun: Word) -> tuple[str, str]:
    """(singular, plural) in the case of a subject."""

  @abc.abstractmethod
  def the(self, noun: Word, plural: bool) -> str:
    """The noun with a definite article, as a subject."""

  @abc.abstractmethod
  def the_object(self, noun: Word, plural: bool) -> str:
    """The noun with a definite article, as a direct object."""

  @abc.abstractmethod
  def thing(self, thing: Thing) -> str:
    """The whole noun phrase as a direct object."""

  @abc.abstractmethod
  def colour(self, thing: Thing) -> str:
    """The thing's colour as the answer to "What colour …?"."""

  @abc.abstractmethod
  def person(self, meaning: Meaning) -> str:
    """The name the verb governs, as its object or its receiver; "" where there is none."""

  def verb(self, verb: Word, plural: bool) -> str:
    """Third person present."""
    return verb.forms[self.code][plural]

  def subject(self, subject: Subject) -> str:
    """The subject as the statement says it."""
    if subject.profession is None:
      return f" {self.conjunction} ".join(subject.names)
    if subject.number is None:
      return self.the(subject.profession, plural=False)
    return join(subject.number.forms[self.code][0], self.nouns(subject.profession)[1])

  def known_subject(self, subject: Subject) -> str:
    """The subject when it has been mentioned: "three doctors" become "the doctors"."""
    if subject.profession is None:
      return self.subject(subject)
    return self.the(subject.profession, plural=subject.plural)

  # Clauses -------------------------------------------------------------------------------------

  def clause(
    self,
    *,
    subject: str,
    verb: str,
    thing: str,
    person: str,
    place: str = "",
    front: str = "",
    late: str = "",
  ) -> str:
    """Arranges a main clause; `front` and `late` are the two places of a time."""
    return join(front, subject, verb, thing, person, place, late)

  def statement(self, meaning: Meaning) -> str:
    """The sentence, capitalised, with its full stop."""
    time = meaning.time.forms[self.code][0] if meaning.time else ""
    front = meaning.pattern.time == "front"
    clause = self.clause(
      subject=self.subject(meaning.subject),
      verb=self.verb(meaning.verb, meaning.subject.plural),
      thing=self.thing(meaning.thing) if meaning.thing else "",
      person=self.person(meaning),
      place=meaning.place.forms[self.code][0] if meaning.place else "",
      front=time if front else "",
      late="" if front else time,
    )
    return capitalise(clause) + "."

  def continuation(self, meaning: Meaning, then_verb: Word) -> str:
    """The follow-up sentence: whoever has the thing now (the receiver, if any) does `then_verb`.

    The thing becomes definite and loses its modifier; time and place are not repeated.
    """
    received = meaning.pattern.frame == "recipient"
    subject = Subject(names=(meaning.person or "",)) if received else meaning.subject
    thing = meaning.thing
    clause = self.clause(
      subject=self.known_subject(subject),
      verb=self.verb(then_verb, subject.plural),
      thing=self.the_object(thing.noun, thing.plural) if thing else "",
      person="" if received else self.person(meaning),
      front=self.then,
    )
    return capitalise(clause) + "."

  def reply(self, meaning: Meaning) -> str:
    """Confirms who does what: the statement without modifier, place and time after a "Yes"."""
    thing = dataclasses.replace(meaning.thing, modifier=None) if meaning.thing else None
    clause = self.clause(
      subject=self.subject(meaning.subject),
      verb=self.verb(meaning.verb, meaning.subject.plural),
      thing=self.thing(thing) if thing else "",
      person=self.person(meaning),
    )
    return f"{self.yes}, {clause}."

  # Questions -----------------------------------------------------------------------------------

  @abc.abstractmethod
  def ask_who(self, predicate: str) -> str:
    """Asks for the subject of `predicate`."""

  @abc.abstractmethod
  def ask_receiver(self, thing: str) -> str:
    """Asks who receives `thing`."""

  @abc.abstractmethod
  def ask_what(self, subject: str, verb: Word, plural: bool) -> str:
    """Asks for the direct object."""

  @abc.abstractmethod
  def ask_how_many(self, noun: Word) -> str:
    """Asks for the number of a counted noun."""

  @abc.abstractmethod
  def ask_colour(self, thing: Thing) -> str:
    """Asks for the colour of the thing."""

  @abc.abstractmethod
  def ask_where(self, subject: str, plural: bool) -> str:
    """Asks for the place."""

  @abc.abstractmethod
  def ask_when(self) -> str:
    """Asks for the time."""

  def questions(self, meaning: Meaning) -> list[tuple[str, str]]:
    """Every question the sentence answers, with its answer, in one order for all languages."""
    subject, thing, pattern = meaning.subject, meaning.thing, meaning.pattern
    the_thing = self.the_object(thing.noun, thing.plural) if thing else ""
    who_does = join(self.verb(meaning.verb, plural=False), the_thing)
    if pattern.frame == "person":
      who_does = join(who_does, self.person(meaning))
    pairs = [(self.ask_who(who_does), self.subject(subject))]
    known = self.known_subject(subject)
    if pattern.frame == "recipient":
      pairs.append((self.ask_receiver(the_thing), meaning.person or ""))
    if thing:
      pairs.append((self.ask_what(known, meaning.verb, subject.plural), self.thing(thing)))
      if thing.number:
        pairs.append((self.ask_how_many(thing.noun), thing.number.forms[self.code][0]))
      if pattern.modifier == "colour":
        pairs.append((self.ask_colour(thing), self.colour(thing)))
    if subject.profession and subject.number:
      pairs.append((self.ask_how_many(subject.profession), subject.number.forms[self.code][0]))
    if meaning.place:
      pairs.append((self.ask_where(known, subject.plural), meaning.place.forms[self.code][0]))
    if meaning.time:
      pairs.append((self.ask_when(), meaning.time.forms[self.code][0]))
    return pairs
