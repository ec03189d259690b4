"""English phrases."""

from slm_jax.data.mini_world.language import Language, join
from slm_jax.data.mini_world.lexicon import Word
from slm_jax.data.mini_world.meaning import Meaning, Thing


class English(Language):
  """Adjectives precede the noun and never change; "do" carries questions."""

  code = "en"
  conjunction = "and"
  then = "then"
  yes = "Yes"

  def nouns(self, noun: Word) -> tuple[str, str]:
    singular, plural = noun.forms["en"]
    return singular, plural

  def the(self, noun: Word, plural: bool) -> str:
    return f"the {self.nouns(noun)[plural]}"

  def the_object(self, noun: Word, plural: bool) -> str:
    return self.the(noun, plural)

  def thing(self, thing: Thing) -> str:
    modifier = thing.modifier.forms["en"][0] if thing.modifier else ""
    rest = join(modifier, self.nouns(thing.noun)[thing.plural])
    if thing.number:
      return join(thing.number.forms["en"][0], rest)
    if thing.determiner == "definite":
      return f"the {rest}"
    return f"an {rest}" if rest[0] in "aeiou" else f"a {rest}"

  def colour(self, thing: Thing) -> str:
    return thing.modifier.forms["en"][0] if thing.modifier else ""

  def person(self, meaning: Meaning) -> str:
    if meaning.pattern.frame == "recipient":
      return f"to {meaning.person}"
    return meaning.person or ""

  def ask_who(self, predicate: str) -> str:
    return f"Who {predicate}?"

  def ask_receiver(self, thing: str) -> str:
    return f"Who gets {thing}?"

  def ask_what(self, subject: str, verb: Word, plural: bool) -> str:
    return f"What {'do' if plural else 'does'} {subject} {self.verb(verb, plural=True)}?"

  def ask_how_many(self, noun: Word) -> str:
    return f"How many {self.nouns(noun)[1]}?"

  def ask_colour(self, thing: Thing) -> str:
    return f"What colour {'are' if thing.plural else 'is'} {self.the(thing.noun, thing.plural)}?"

  def ask_where(self, subject: str, plural: bool) -> str:
    return f"Where {'are' if plural else 'is'} {subject}?"

  def ask_when(self) -> str:
    return "When is that?"
