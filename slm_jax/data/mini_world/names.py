"""The open generator of names: invented words whose spelling can be heard.

A name has two or three syllables of one consonant and one vowel; a syllable that is not the last
may end in n, l or r. The rules drop what a synthesiser would make ambiguous: a final e is silent in
French; "er", "ir" and "ur" sound alike in English, "en" and "an" in French, "Tebo" and "Tibo" in
English. No letter is doubled.
"""

import re

from slm_jax.data.mini_world.lexicon import surface_words
from slm_jax.data.mini_world.splits import Draws, Split, split_of

CONSONANTS = "bdfgklmnprst"
VOWELS = "aeiou"
OPEN_FINALS = "aiou"
CODAS = {"a": "nlr", "e": "", "i": "nl", "o": "nlr", "u": "l"}
CODA_PROBABILITY = 0.25


def _candidate(draws: Draws) -> str:
  count = 2 + draws.below(2)
  letters = ""
  for position in range(count):
    last = position == count - 1
    after_coda = letters != "" and letters[-1] not in VOWELS
    onset = draws.choice("bdfgkmpst" if after_coda else CONSONANTS)
    letters += onset
    if last or (count == 2 and position == 0):
      letters += draws.choice(OPEN_FINALS)
    else:
      letters += draws.choice(VOWELS)
    codas = CODAS[letters[-1]]
    if not last and codas and draws.chance(CODA_PROBABILITY):
      letters += draws.choice(codas)
  return letters


def sample_name(draws: Draws, split: Split) -> str:
  """A capitalised name of the given split that is no word of the lexicon in any language."""
  while True:
    letters = _candidate(draws)
    if letters not in surface_words() and split_of("name", letters) == split:
      return letters.capitalize()


def syllables(name: str) -> list[str]:
  """The syllables of a generated name: "Karina" → ["Ka", "ri", "na"], "Belto" → ["Bel", "to"]."""
  return re.findall(r"[^aeiou][aeiou](?:[nlr](?![aeiou]))?", name, flags=re.IGNORECASE)
