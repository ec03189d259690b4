"""The mini world's speakers: espeak-ng voice variants, and which of them training never hears."""

import hashlib

# Variants of espeak-ng 1.52 that are clear in all four languages. Left out: whispers, robots and
# monsters; near copies of one another; and f2, f3, f5, sandro, whose speech is never the same
# twice.
VARIANTS = (
  "Alex",
  "Alicia",
  "Andrea",
  "Andy",
  "Annie",
  "Denis",
  "Gene",
  "Henrique",
  "Hugo",
  "Lee",
  "Mario",
  "Michael",
  "Mike",
  "Nguyen",
  "adam",
  "announcer",
  "aunty",
  "belinda",
  "benjamin",
  "boris",
  "caleb",
  "david",
  "edward",
  "f1",
  "f4",
  "grandma",
  "grandpa",
  "linda",
  "m1",
  "m3",
  "m4",
  "m6",
  "m7",
  "marcelo",
  "max",
  "michel",
  "miguel",
  "quincy",
  "rob",
  "robert",
  "shelby",
  "steph",
  "travis",
  "victor",
)
NUM_HELD_OUT = 8


def held_out_variants() -> tuple[str, ...]:
  """The variants that no training utterance of any language uses: the first by SHA-256."""
  ranked = sorted(VARIANTS, key=lambda variant: hashlib.sha256(variant.encode()).hexdigest())
  return tuple(sorted(ranked[:NUM_HELD_OUT]))


def variants(split: str) -> tuple[str, ...]:
  """The voices of "train", or those of any other split, which are the held-out ones."""
  held_out = held_out_variants()
  if split != "train":
    return held_out
  return tuple(variant for variant in VARIANTS if variant not in held_out)
