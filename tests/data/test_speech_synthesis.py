"""espeak-ng speaks; voices are many, exist, and are split; nothing of it needs TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from slm_jax.data import speech_synthesis, voices
from slm_jax.data.speech_synthesis import ESPEAK_LANGUAGES, EspeakSynthesizer
from slm_jax.errors import UserError

TEXT = {
  "en": "Tomeli buys three red apples.",
  "de": "Tomeli kauft drei rote Äpfel.",
  "es": "Tomeli compra tres manzanas rojas.",
  "fr": "Tomeli achète trois pommes rouges.",
}


@pytest.fixture(scope="module")
def espeak():
  return EspeakSynthesizer()


@pytest.mark.parametrize("language", ESPEAK_LANGUAGES)
def test_speaks_every_language(espeak, language):
  samples, rate = espeak.synthesize(TEXT[language], language, "m1", 0)
  assert samples.dtype == np.int16 and samples.ndim == 1
  assert 1.0 < len(samples) / rate < 4.0
  assert np.abs(samples.astype(int)).max() > 3_000


def test_text_language_voice_and_seed_all_matter(espeak):
  def sound(text="one two three", language="en", voice="adam", seed=0):
    samples, _ = espeak.synthesize(text, language, voice, seed)
    size = 1 << 16
    return np.log1p(np.abs(np.fft.rfft(samples, size)))

  def distance(a, b):
    return np.mean(np.abs(a - b))

  base = sound()
  repeat = distance(base, sound())  # noise and phase that the library carries over
  for change in ({"text": "four five six"}, {"language": "fr"}, {"voice": "david"}, {"seed": 1}):
    assert distance(base, sound(**change)) > 3 * repeat + 0.05, change


def test_seed_changes_the_rate_within_its_bounds(espeak):
  lengths = [len(espeak.synthesize(TEXT["en"], "en", "m1", seed)[0]) for seed in range(12)]
  assert 1.1 < max(lengths) / min(lengths) < 230 / 170 * 1.1


def test_unknown_language_and_voice_are_named(espeak):
  with pytest.raises(ValueError, match="'it'"):
    espeak.synthesize("ciao", "it", "m1", 0)
  with pytest.raises(ValueError, match="'nobody'"):
    espeak.synthesize("hello", "en", "nobody", 0)


def test_missing_wheel_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "espeakng_loader", None)
  speech_synthesis._library.cache_clear()
  with pytest.raises(UserError, match=r"slm_jax\[mini\]"):
    EspeakSynthesizer()
  speech_synthesis._library.cache_clear()


def test_voices_are_many_real_and_disjoint():
  train, held_out = set(voices.variants("train")), set(voices.variants("validation"))
  assert len(train) >= 20 and len(held_out) >= 4
  assert not train & held_out
  assert train | held_out == set(voices.VARIANTS) <= speech_synthesis._library().voices
  assert not {"f2", "f3", "f5", "sandro"} & set(voices.VARIANTS)


def test_needs_no_tensorflow():
  code = (
    "import sys; sys.modules.update(tensorflow=None, seqio=None)\n"
    "import slm_jax.data.augmentation, slm_jax.data.speech_synthesis, slm_jax.data.voices"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
