"""French phrases: elision, agreement, adjectives before or after the noun."""

from slm_jax.data.mini_world.language import Language, join
from slm_jax.data.mini_world.lexicon import Word
from slm_jax.data.mini_world.meaning import Meaning, Thing

# The lexicon holds no French word beginning with h or y, whose elision would need marking.
ELIDING = "aàâeéèêiîoôuûœ"


def elide(particle: str, phrase: str) -> str:
  """ "le" + "orange" → "l'orange"; "le" + "chat" → "le chat"."""
  return f"{particle[:-1]}'{phrase}" if phrase[0] in ELIDING else f"{particle} {phrase}"


class French(Language):
  """Questions keep the space that French sets before a question mark."""

  code = "fr"
  conjunction = "et"
  then = "ensuite"
  yes = "Oui"

  def nouns(self, noun: Word) -> tuple[str, str]:
    _, singular, plural = noun.forms["fr"]
    return singular, plural

  def _definite(self, gender: str, phrase: str, plural: bool) -> str:
    return f"les {phrase}" if plural else elide("le" if gender == "m" else "la", phrase)

  def the(self, noun: Word, plural: bool) -> str:
    return self._definite(noun.forms["fr"][0], self.nouns(noun)[plural], plural)

  def the_object(self, noun: Word, plural: bool) -> str:
    return self.the(noun, plural)

  def _agreeing(self, thing: Thing, *, before_noun: bool) -> str:
    assert thing.modifier
    forms = thing.modifier.forms["fr"]
    feminine = thing.noun.forms["fr"][0] == "f"
    if before_noun and len(forms) == 6 and not feminine and not thing.plural:
      if self.nouns(thing.noun)[0][0] in ELIDING:
        return forms[5]
    return forms[1 + feminine + 2 * thing.plural]

  def thing(self, thing: Thing) -> str:
    phrase = self.nouns(thing.noun)[thing.plural]
    if thing.modifier:
      before = thing.modifier.forms["fr"][0] == "pre"
      adjective = self._agreeing(thing, before_noun=before)
      phrase = join(adjective, phrase) if before else join(phrase, adjective)
    gender = thing.noun.forms["fr"][0]
    if thing.number:
      return join(thing.number.forms["fr"][0], phrase)
    if thing.determiner == "definite":
      return self._definite(gender, phrase, plural=False)
    return join("un" if gender == "m" else "une", phrase)

  def colour(self, thing: Thing) -> str:
    return self._agreeing(thing, before_noun=False)

  def person(self, meaning: Meaning) -> str:
    if meaning.pattern.frame == "recipient":
      return f"à {meaning.person}"
    return meaning.person or ""

  def ask_who(self, predicate: str) -> str:
    return f"Qui {predicate} ?"

  def ask_receiver(self, thing: str) -> str:
    return f"Qui reçoit {thing} ?"

  def ask_what(self, subject: str, verb: Word, plural: bool) -> str:
    return f"{elide('Que', self.verb(verb, plural))} {subject} ?"

  def ask_how_many(self, noun: Word) -> str:
    return f"Combien {elide('de', self.nouns(noun)[1])} ?"

  def ask_colour(self, thing: Thing) -> str:
    verb = "sont" if thing.plural else "est"
    return f"De quelle couleur {verb} {self.the(thing.noun, thing.plural)} ?"

  def ask_where(self, subject: str, plural: bool) -> str:
    return f"Où {'sont' if plural else 'est'} {subject} ?"

  def ask_when(self) -> str:
    return "C'est quand ?"
