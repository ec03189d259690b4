"""Speakers drawn near an espeak-ng variant."""

import numpy as np
import pytest

from slm_jax.data.speech_synthesis import EspeakSynthesizer
from slm_jax.data.voice_variation import MAX_FORMANT_FACTOR, MAX_TRACT_FACTOR, vary_voice

DEFINITION = """language variant
name Somebody
klatt 2
pitch 80 160

formant 1 90 75 120 -10
formant 2 120 100 100
voicing 40
"""


def numbers(definition: str, word: str) -> dict[str, list[float]]:
  lines = [line.split() for line in definition.splitlines()]
  return {line[1]: [float(x) for x in line[2:]] for line in lines if line[:1] == [word]}


def test_formants_and_pitch_move_and_nothing_else_does():
  varied = vary_voice(DEFINITION, np.random.default_rng(0))
  formants = numbers(varied, "formant")
  assert formants["1"][1:] == [75, 120, -10] and formants["1"][0] != 90
  assert formants["2"][1:] == [100, 100] and formants["2"][0] != 120
  assert sorted(formants) == [str(n) for n in range(9)]  # also those the file says nothing of
  for line in ("language variant", "name Somebody", "klatt 2", "voicing 40"):
    assert line in varied.splitlines()
  assert sum(line.startswith("pitch") for line in varied.splitlines()) == 1


def test_factors_stay_within_their_bounds_and_reach_both_sides():
  greatest = MAX_TRACT_FACTOR * MAX_FORMANT_FACTOR
  factors = [
    numbers(vary_voice(DEFINITION, np.random.default_rng(seed)), "formant")["2"][0] / 120
    for seed in range(300)
  ]
  assert 1 / greatest - 0.01 < min(factors) < 0.85 and 1.18 < max(factors) < greatest + 0.01


def test_a_speaker_is_a_function_of_the_generator():
  first, again, other = (vary_voice(DEFINITION, np.random.default_rng(s)) for s in (1, 1, 2))
  assert first == again != other


def centre(samples: np.ndarray, rate: int) -> float:
  spectrum = np.abs(np.fft.rfft(samples.astype(float)))
  return float((spectrum * np.fft.rfftfreq(len(samples), 1 / rate)).sum() / spectrum.sum())


def test_varied_speech_says_as_much_in_another_voice():
  espeak = EspeakSynthesizer()
  text = "two neighbours sing in the garden"
  plain = [espeak.synthesize(text, "en", "m1", seed) for seed in range(6)]
  varied = [espeak.synthesize(text, "en", "m1", seed, vary=True) for seed in range(6)]
  after = [espeak.synthesize(text, "en", "m1", seed) for seed in range(6)]
  for (a, _), (b, _) in zip(plain, varied, strict=True):
    assert len(b) == pytest.approx(len(a), rel=0.05)
  moved = np.abs([centre(*b) / centre(*a) - 1 for a, b in zip(plain, varied, strict=True)])
  still = np.abs([centre(*b) / centre(*a) - 1 for a, b in zip(plain, after, strict=True)])
  assert np.mean(moved) > 0.04 and np.max(still) < 0.02  # the variant itself is left as it was
