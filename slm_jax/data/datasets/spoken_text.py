"""Text spoken by a synthesiser, for data sets that come as text."""

import hashlib

import numpy as np

from slm_jax.audio.files import convert_samples
from slm_jax.data import voices
from slm_jax.data.datasets.segments import encode_flac
from slm_jax.data.speech_synthesis import SpeechSynthesizer


def speak(
  synthesizer: SpeechSynthesizer, text: str, language: str, key: str, split: str
) -> tuple[bytes, str]:
  """(FLAC at 16 kHz, voice) of a text in one of the split's voices, chosen by `key`.

  Args:
    synthesizer: with the voices of `voices`.
    text: to be spoken.
    language: its code.
    key: of the record; equal keys sound equal.
    split: "train", or any other, whose voices training never hears.
  """
  seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
  rng = np.random.default_rng(seed)
  candidates = voices.variants(split)
  voice = candidates[rng.integers(len(candidates))]
  samples, rate = synthesizer.synthesize(
    text, language, voice, int(rng.integers(2**31)), vary=split == "train"
  )
  return encode_flac(convert_samples(samples, rate, f"speech of {key}")), voice


def share_of(key: str) -> float:
  """A number in 0…1 that depends on `key` alone, for splitting data that come in one piece."""
  return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
