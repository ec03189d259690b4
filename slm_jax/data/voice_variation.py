"""New speakers from an espeak-ng voice variant: another vocal tract, another pitch.

espeak-ng comes with a few dozen variants; a recogniser that has heard only those does not carry over to one whose
formants lie elsewhere. A variant's file gives formants and pitch as lines of numbers (espeak-ng, docs/voices.md), so
scaling them makes a speaker of one's own.
"""

import numpy as np

# Greatest factor of all formants together, which is what a longer or shorter vocal tract does.
MAX_TRACT_FACTOR = 1.25
# Greatest further factor of each of the first three formants on its own.
MAX_FORMANT_FACTOR = 1.1
MAX_PITCH_FACTOR = 1.25
NUM_FORMANTS = 9
DEFAULT_PITCH = (82.0, 118.0)  # Hz, the range of a variant that says nothing


def vary_voice(definition: str, rng: np.random.Generator) -> str:
  """A variant file's text → that of a speaker drawn at random near it."""
  tract = _factor(rng, MAX_TRACT_FACTOR)
  own = [_factor(rng, MAX_FORMANT_FACTOR) if 1 <= n <= 3 else 1.0 for n in range(NUM_FORMANTS)]
  formants = {n: f"formant {n} {100 * tract * own[n]:.0f} 100 100" for n in range(NUM_FORMANTS)}
  pitch, rest = DEFAULT_PITCH, []
  for line in definition.splitlines():
    words = line.split()
    if words[:1] == ["formant"] and len(words) > 2 and words[1].isdigit():
      number = int(words[1])
      frequency = float(words[2]) * tract * own[number]
      formants[number] = " ".join([*words[:2], f"{frequency:.0f}", *words[3:]])
    elif words[:1] == ["pitch"] and len(words) > 2:
      pitch = float(words[1]), float(words[2])
    else:
      rest.append(line)
  factor = _factor(rng, MAX_PITCH_FACTOR)
  low, high = (round(hz * factor) for hz in pitch)
  return "\n".join([*rest, f"pitch {low} {high}", *formants.values()]) + "\n"


def _factor(rng: np.random.Generator, greatest: float) -> float:
  """Log-uniform between 1 / greatest and greatest."""
  return float(np.exp(rng.uniform(-1, 1) * np.log(greatest)))
