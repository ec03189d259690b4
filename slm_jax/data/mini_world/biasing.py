"""Contextual biasing in the mini world: names put before the model, and names heard wrongly.

The LM learns from text alone that a list of names tells how a name is spelt: a sentence in which a name was
"misheard" and a list that holds the right spelling among others give the sentence as it was. Where the
list does not hold the name, the sentence stays as it is: a list is a hint, not an order.
"""

import re
from collections.abc import Sequence

from slm_jax.data.mini_world.names import sample_name
from slm_jax.data.mini_world.splits import Draws, Split

MAX_DISTRACTORS = 20  # of the lists that the LM is trained with
LISTED_PROBABILITY = 0.6
MISHEARD_PROBABILITY = 0.8
_MAX_CHANGES = 2
# Letters that are taken for one another, by voicing, place or openness.
_ALIKE = {
  "b": "pd", "p": "bt", "d": "tb", "t": "dk", "g": "kd", "k": "gt", "m": "n", "n": "ml", "l": "rn", "r": "l", "s": "f",
  "f": "sp", "a": "oe", "o": "ua", "u": "oi", "e": "ia", "i": "eu",
}  # fmt: skip


def mishear(name: str, draws: Draws) -> str:
  """`name` with one or two of its letters taken for letters that sound alike: "Karina" → "Garila"."""
  letters = list(name.lower())
  while True:
    for _ in range(1 + draws.below(_MAX_CHANGES)):
      position = draws.below(len(letters))
      letters[position] = draws.choice(_ALIKE[letters[position]])
    heard = "".join(letters).capitalize()
    if heard != name:
      return heard


def name_list(
  names: Sequence[str], num_distractors: int, draws: Draws, split: Split
) -> tuple[str, ...]:
  """`names` among `num_distractors` other names of the split, in random order, none twice."""
  listed = list(names)
  while len(listed) < len(names) + num_distractors:
    name = sample_name(draws, split)
    if name not in listed:
      listed.append(name)
  order = sorted((draws.below(2**40), i) for i in range(len(listed)))
  return tuple(listed[i] for _, i in order)


def with_names(instruction: str, names: Sequence[str]) -> str:
  """The instruction followed by the list, if there is any: "Transcribe this. Names may be Karina, Belto."."""
  return f"{instruction} Names may be {', '.join(names)}." if names else instruction


def biased_sentence(
  text: str, names: Sequence[str], draws: Draws, split: Split
) -> tuple[str, tuple[str, ...]]:
  """One training example of the LM: the sentence as it was heard, and the list beside it.

  A name is only misheard where the list gives it back. Short lists are as frequent as long ones.
  """
  listed = bool(names) and draws.chance(LISTED_PROBABILITY)
  num_distractors = draws.below(1 + draws.choice((2, 6, MAX_DISTRACTORS)))
  others = tuple(names) if listed else ()
  candidates = name_list(others, max(num_distractors, 0 if listed else 1), draws, split)
  if not listed:
    candidates = tuple(name for name in candidates if name not in names)
  heard = text
  if listed:
    for name in names:
      if draws.chance(MISHEARD_PROBABILITY):
        # As a whole word: one name may begin another.
        heard = re.sub(rf"\b{name}\b", mishear(name, draws), heard)
  return heard, candidates
