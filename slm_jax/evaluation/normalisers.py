"""Text normalisers by id: what is done to references and hypotheses alike before they are compared.

An id stands for its rules for ever: a change of the rules takes a new one, so that two scores of one id
compare with each other.
"""

import functools
import unicodedata
from collections.abc import Callable, Mapping


def normalise_basic(text: str) -> str:
  """'basic-1': NFKC, lower case, punctuation removed, white space collapsed to single spaces.

  Every character of a Unicode punctuation category becomes a space, except that an apostrophe
  between two letters stays (as ') because "don't" is one word. Letters keep their accents, and
  digits and words for numbers stay as they are. Not the normaliser of any published benchmark:
  numbers made with it compare with each other only.
  """
  text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
  text = text.replace("\u2019", "'")
  kept = []
  for i, char in enumerate(text):
    inside = 0 < i < len(text) - 1 and text[i - 1].isalpha() and text[i + 1].isalpha()
    punctuation = unicodedata.category(char).startswith("P")
    kept.append(" " if punctuation and not (char == "'" and inside) else char)
  return " ".join("".join(kept).split())


def normalise_none(text: str) -> str:
  """'none': the text as it is, but for white space at its ends."""
  return text.strip()


def normalise_whisper_english(text: str) -> str:
  """'whisper-english-1': Whisper's English rules: fillers and brackets removed, contractions and numbers spelt one
  way, British spelling made American. For English alone."""
  return _whisper("english")(text).strip()


def normalise_whisper_basic(text: str) -> str:
  """'whisper-basic-1': Whisper's rules for any language: brackets, marks and punctuation removed, lower case."""
  return _whisper("basic")(text).strip()


@functools.cache
def _whisper(rules: str) -> Callable[[str], str]:
  # Imported when asked for: it reads tables of spellings.
  if rules == "english":
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
  from whisper_normalizer.basic import BasicTextNormalizer

  return BasicTextNormalizer()


NORMALISERS: Mapping[str, Callable[[str], str]] = {
  "basic-1": normalise_basic,
  "none": normalise_none,
  "whisper-english-1": normalise_whisper_english,
  "whisper-basic-1": normalise_whisper_basic,
}


def normaliser_of(name: str) -> Callable[[str], str]:
  """The rules of an id. Raises ValueError for an unknown one."""
  if name not in NORMALISERS:
    raise ValueError(f"unknown normaliser {name!r}; known: {sorted(NORMALISERS)}")
  return NORMALISERS[name]
