"""Sentences of the mini world in four languages, with their questions, follow-ups and replies."""

import dataclasses

from slm_jax.data.mini_world.english import English
from slm_jax.data.mini_world.french import French
from slm_jax.data.mini_world.german import German
from slm_jax.data.mini_world.language import Language
from slm_jax.data.mini_world.lexicon import LANGUAGES, load_lexicon
from slm_jax.data.mini_world.meaning import Meaning, sample_meaning
from slm_jax.data.mini_world.patterns import MAX_WORDS, MIN_WORDS
from slm_jax.data.mini_world.spanish import Spanish
from slm_jax.data.mini_world.splits import Draws, Split, check_split

GRAMMARS: dict[str, Language] = {
  grammar.code: grammar for grammar in (English(), German(), Spanish(), French())
}
# Bounds a sentence in speech (about 15 characters a second) and in pieces.
MAX_CHARACTERS = 56


def check_language(language: str) -> None:
  """Raises ValueError unless `language` is one of the four."""
  if language not in LANGUAGES:
    raise ValueError(f"{language=} is not one of {LANGUAGES}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSentence:
  """A meaning and the language drawn for it; every method renders in any of the four languages."""

  meaning: Meaning
  language: str
  texts: dict[str, str]  # language → sentence

  @property
  def pattern(self) -> str:
    """The pattern's key."""
    return self.meaning.pattern.key

  @property
  def names(self) -> tuple[str, ...]:
    """The names in order of appearance, the same in every language."""
    return self.meaning.names

  def text(self, language: str | None = None) -> str:
    """The sentence, capitalised, with its full stop; default: in its own language."""
    return self.texts[language or self.language]

  def questions(self, language: str | None = None) -> list[tuple[str, str]]:
    """Every (question, answer), in the same order in every language; never empty."""
    return GRAMMARS[language or self.language].questions(self.meaning)

  def continuation(self, language: str | None = None) -> str:
    """What happens next. The rule: each verb has one follow-up verb (`then:` in lexicon.tsv).

    "Tomeli buys three red apples in Rome." → "Then Tomeli washes the apples."
    "Tomeli brings three apples to Karina." → "Then Karina counts the apples."
    """
    frame = self.meaning.pattern.frame
    then_verb = load_lexicon().verb[self.meaning.verb.then[frame]]
    return GRAMMARS[language or self.language].continuation(self.meaning, then_verb)

  def reply(self, language: str | None = None) -> str:
    """Confirms who does what to whom, without colours, adjectives, place and time."""
    return GRAMMARS[language or self.language].reply(self.meaning)


def _fits(text: str) -> bool:
  return len(text) <= MAX_CHARACTERS and MIN_WORDS <= text.count(" ") + 1 <= MAX_WORDS


def sample_sentence(
  seed: int, index: int, split: Split, language: str | None = None
) -> WorldSentence:
  """The sentence of (seed, index, split).

  The meaning does not depend on `language`. Sentences of 4 to 9 words and at most 56 characters in
  all four languages are kept; others are drawn again.

  Raises:
    ValueError: an unknown split or language.
  """
  check_split(split)
  if language is not None:
    check_language(language)
  draws = Draws(seed, index, split, "sentence")
  drawn_language = draws.choice(LANGUAGES)
  while True:
    meaning = sample_meaning(draws, split)
    texts: dict[str, str] = {}
    for code, grammar in GRAMMARS.items():
      texts[code] = grammar.statement(meaning)
      if not _fits(texts[code]):
        break
    else:
      return WorldSentence(meaning=meaning, language=language or drawn_language, texts=texts)
