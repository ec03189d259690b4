"""Held-out patterns and names, and the random numbers of one example, as pure functions."""

import hashlib
import random
from collections.abc import Sequence
from typing import Literal, TypeVar

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
HELD_OUT_PERCENT = 15

Item = TypeVar("Item")


def check_split(split: str) -> None:
  """Raises ValueError unless `split` is one of `SPLITS`."""
  if split not in SPLITS:
    raise ValueError(f"{split=} is not one of {SPLITS}")


def _digest(*parts: object) -> int:
  text = "/".join(map(str, parts)).encode()
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def split_of(kind: str, key: str) -> Split:
  """The only split in which `key` (a pattern or a name, told apart by `kind`) may appear."""
  return "heldout" if _digest(kind, key) % 100 < HELD_OUT_PERCENT else "train"


class Draws:
  """Random choices for one example, decided by (seed, index, split, purpose) alone."""

  def __init__(self, seed: int, index: int, split: str, purpose: str):
    # Only `random()` is used: its sequence for an integer seed is fixed across Python versions.
    self._uniform = random.Random(_digest("draws", seed, index, split, purpose)).random

  def below(self, n: int) -> int:
    """An integer in [0, n)."""
    return int(self._uniform() * n)

  def chance(self, probability: float) -> bool:
    """True with the given probability."""
    return self._uniform() < probability

  def choice(self, items: Sequence[Item]) -> Item:
    """One item, all equally likely."""
    return items[int(self._uniform() * len(items))]

  def weighted(self, weights: dict[str, float]) -> str:
    """One key of `weights` with probability proportional to its value."""
    position = self._uniform() * sum(weights.values())
    for key, weight in weights.items():
      position -= weight
      if position < 0:
        return key
    return next(reversed(weights))  # rounding left nothing below zero
