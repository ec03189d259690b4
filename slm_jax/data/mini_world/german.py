"""German phrases: verb second, accusative objects, adjective endings."""

from slm_jax.data.mini_world.language import Language, join
from slm_jax.data.mini_world.lexicon import Word
from slm_jax.data.mini_world.meaning import Meaning, Thing

NOMINATIVE = {"m": "der", "f": "die", "n": "das"}
ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
INDEFINITE_ACCUSATIVE = {"m": "einen", "f": "eine", "n": "ein"}
# Index into (uninflected, -e, -en, -es): weak after the definite article, mixed after "ein".
WEAK_ACCUSATIVE = {"m": 2, "f": 1, "n": 1}
MIXED_ACCUSATIVE = {"m": 2, "f": 1, "n": 3}
STRONG_PLURAL = 1


class German(Language):
  """A time stands first, with the verb before the subject, or before the thing."""

  code = "de"
  conjunction = "und"
  then = "dann"
  yes = "Ja"

  def nouns(self, noun: Word) -> tuple[str, str]:
    return noun.forms["de"][1], noun.forms["de"][2]

  def _accusative(self, noun: Word) -> str:
    forms = noun.forms["de"]
    return forms[3] if len(forms) == 4 else forms[1]

  def the(self, noun: Word, plural: bool) -> str:
    article = "die" if plural else NOMINATIVE[noun.forms["de"][0]]
    return f"{article} {self.nouns(noun)[plural]}"

  def the_object(self, noun: Word, plural: bool) -> str:
    if plural:
      return self.the(noun, plural=True)
    return f"{ACCUSATIVE[noun.forms['de'][0]]} {self._accusative(noun)}"

  def thing(self, thing: Thing) -> str:
    gender = thing.noun.forms["de"][0]
    if thing.number:
      article, ending = thing.number.forms["de"][0], STRONG_PLURAL
    elif thing.determiner == "definite":
      article, ending = ACCUSATIVE[gender], WEAK_ACCUSATIVE[gender]
    else:
      article, ending = INDEFINITE_ACCUSATIVE[gender], MIXED_ACCUSATIVE[gender]
    modifier = thing.modifier.forms["de"][ending] if thing.modifier else ""
    noun = self.nouns(thing.noun)[1] if thing.plural else self._accusative(thing.noun)
    return join(article, modifier, noun)

  def colour(self, thing: Thing) -> str:
    return thing.modifier.forms["de"][0] if thing.modifier else ""

  def person(self, meaning: Meaning) -> str:
    return meaning.person or ""

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
    if front:
      return join(front, verb, subject, person, thing, place)
    return join(subject, verb, person, late, thing, place)

  def ask_who(self, predicate: str) -> str:
    return f"Wer {predicate}?"

  def ask_receiver(self, thing: str) -> str:
    return f"Wer bekommt {thing}?"

  def ask_what(self, subject: str, verb: Word, plural: bool) -> str:
    return f"Was {self.verb(verb, plural)} {subject}?"

  def ask_how_many(self, noun: Word) -> str:
    return f"Wie viele {self.nouns(noun)[1]}?"

  def ask_colour(self, thing: Thing) -> str:
    verb = "haben" if thing.plural else "hat"
    return f"Welche Farbe {verb} {self.the(thing.noun, thing.plural)}?"

  def ask_where(self, subject: str, plural: bool) -> str:
    return f"Wo {'sind' if plural else 'ist'} {subject}?"

  def ask_when(self) -> str:
    return "Wann ist das?"
