"""Spanish phrases: agreement, adjectives after the noun, "a" before people."""

from slm_jax.data.mini_world.language import Language, join
from slm_jax.data.mini_world.lexicon import Word
from slm_jax.data.mini_world.meaning import Meaning, Thing


class Spanish(Language):
  """No feminine noun of the lexicon begins with a stressed a, so articles follow gender alone."""

  code = "es"
  conjunction = "y"
  then = "luego"
  yes = "Sí"

  def nouns(self, noun: Word) -> tuple[str, str]:
    _, singular, plural = noun.forms["es"]
    return singular, plural

  def the(self, noun: Word, plural: bool) -> str:
    article = {"m": ("el", "los"), "f": ("la", "las")}[noun.forms["es"][0]][plural]
    return f"{article} {self.nouns(noun)[plural]}"

  def the_object(self, noun: Word, plural: bool) -> str:
    return self.the(noun, plural)

  def colour(self, thing: Thing) -> str:
    if not thing.modifier:
      return ""
    feminine = thing.noun.forms["es"][0] == "f"
    return thing.modifier.forms["es"][feminine + 2 * thing.plural]

  def thing(self, thing: Thing) -> str:
    masculine = thing.noun.forms["es"][0] == "m"
    if thing.number:
      article = thing.number.forms["es"][0]
    elif thing.determiner == "definite":
      article = "el" if masculine else "la"
    else:
      article = "un" if masculine else "una"
    return join(article, self.nouns(thing.noun)[thing.plural], self.colour(thing))

  def person(self, meaning: Meaning) -> str:
    return f"a {meaning.person}" if meaning.person else ""

  def ask_who(self, predicate: str) -> str:
    return f"¿Quién {predicate}?"

  def ask_receiver(self, thing: str) -> str:
    return f"¿Quién recibe {thing}?"

  def ask_what(self, subject: str, verb: Word, plural: bool) -> str:
    return f"¿Qué {self.verb(verb, plural)} {subject}?"

  def ask_how_many(self, noun: Word) -> str:
    quantity = "Cuántos" if noun.forms["es"][0] == "m" else "Cuántas"
    return f"¿{quantity} {self.nouns(noun)[1]}?"

  def ask_colour(self, thing: Thing) -> str:
    verb = "son" if thing.plural else "es"
    return f"¿De qué color {verb} {self.the(thing.noun, thing.plural)}?"

  def ask_where(self, subject: str, plural: bool) -> str:
    return f"¿Dónde {'están' if plural else 'está'} {subject}?"

  def ask_when(self) -> str:
    return "¿Cuándo es eso?"
