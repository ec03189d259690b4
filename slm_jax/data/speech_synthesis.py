"""Speech from text, for the mini world: a small protocol and the espeak-ng implementation of it.

espeak-ng is GPL-3. It comes as the wheel `espeakng-loader` (extra `mini`), is loaded only when a
synthesiser is made, and only makes data; nothing that trains or serves a model needs it.
"""

import ctypes
import functools
import os
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from slm_jax.data.voice_variation import vary_voice
from slm_jax.errors import UserError

ESPEAK_LANGUAGES = {"en": "gmw/en", "de": "gmw/de", "es": "roa/es", "fr": "roa/fr"}
MIN_WORDS_PER_MINUTE, MAX_WORDS_PER_MINUTE = 170, 230
# espeak-ng's scale is 0…100 with 50 the voice's own pitch.
MIN_PITCH, MAX_PITCH = 35, 65

# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE, _PITCH = 1, 3
_OWN_VARIANT = "slm_jax_varied"

_Callback = ctypes.CFUNCTYPE(
  ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class SpeechSynthesizer(Protocol):
  """Speaks."""

  def synthesize(
    self, text: str, language: str, voice: str, seed: int, *, vary: bool = False
  ) -> tuple[np.ndarray, int]:
    """Returns (mono int16 [S], samples per second).

    `seed` chooses rate and pitch; with `vary` also a speaker near `voice` instead of that one.
    """
    ...


class EspeakSynthesizer:
  """espeak-ng, one per process: the library has global state and is not thread-safe.

  Voices are names of espeak-ng's variants. The same call can differ in a few samples between
  processes, as the library carries noise and phase from one utterance to the next.
  """

  def __init__(self):
    """Raises UserError if the wheel is not installed."""
    self._espeak = _library()

  def synthesize(
    self, text: str, language: str, voice: str, seed: int, *, vary: bool = False
  ) -> tuple[np.ndarray, int]:
    """Speaks `text` at 170…230 words a minute; see `SpeechSynthesizer`.

    Raises:
      ValueError: unknown language or voice.
      RuntimeError: espeak-ng reports a failure.
    """
    if language not in ESPEAK_LANGUAGES:
      raise ValueError(f"language {language!r} is not one of {sorted(ESPEAK_LANGUAGES)}")
    # The library itself falls back in silence to the plain voice of the language.
    if voice not in self._espeak.voices:
      raise ValueError(
        f"voice {voice!r} is not one of espeak-ng's {len(self._espeak.voices)} variants"
      )
    rng = np.random.default_rng(seed)
    rate = int(rng.integers(MIN_WORDS_PER_MINUTE, MAX_WORDS_PER_MINUTE + 1))
    pitch = int(rng.integers(MIN_PITCH, MAX_PITCH + 1))
    if vary:
      voice = self._espeak.define_voice(vary_voice(self._espeak.definition(voice), rng))
    samples = self._espeak.speak(text, f"{ESPEAK_LANGUAGES[language]}+{voice}", rate, pitch)
    return samples, self._espeak.sample_rate


class _Library:
  """The loaded shared library; its callback must live as long as it does."""

  def __init__(self, library_path: str, data_path: str):
    self._functions = ctypes.CDLL(library_path)
    self._functions.espeak_Synth.argtypes = (
      ctypes.c_char_p,
      ctypes.c_size_t,
      ctypes.c_uint,
      ctypes.c_int,
      ctypes.c_uint,
      ctypes.c_uint,
      ctypes.c_void_p,
      ctypes.c_void_p,
    )
    # Removed when the process ends.
    self._own_data = tempfile.TemporaryDirectory(prefix="slm_jax_espeak_")
    self._variants = _link_data(Path(data_path), Path(self._own_data.name))
    self.sample_rate: int = self._functions.espeak_Initialize(
      _AUDIO_OUTPUT_SYNCHRONOUS, 0, self._own_data.name.encode(), _INITIALIZE_DONT_EXIT
    )
    if self.sample_rate <= 0:
      raise UserError(f"espeak-ng cannot read its data in {data_path}; reinstall espeakng-loader")
    self.voices = frozenset(os.listdir(self._variants))
    self._pcm = bytearray()
    self._callback = _Callback(self._collect)
    self._functions.espeak_SetSynthCallback(self._callback)

  def _collect(self, samples, count: int, events) -> int:
    if samples and count > 0:
      self._pcm += ctypes.string_at(samples, 2 * count)
    return 0

  def definition(self, voice: str) -> str:
    """The text of a voice variant's file."""
    return (self._variants / voice).read_text()

  def define_voice(self, definition: str) -> str:
    """Makes a voice variant of this process's own, in place of its last one; returns its name."""
    (self._variants / _OWN_VARIANT).write_text(definition)
    return _OWN_VARIANT

  def speak(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """Returns int16 [S]."""
    self._pcm.clear()
    encoded = text.encode()
    failed = (
      self._functions.espeak_SetVoiceByName(voice.encode())
      or self._functions.espeak_SetParameter(_RATE, rate, 0)
      or self._functions.espeak_SetParameter(_PITCH, pitch, 0)
      or self._functions.espeak_Synth(
        encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
      )
      or self._functions.espeak_Synchronize()
    )
    if failed:
      raise RuntimeError(f"espeak-ng failed with status {failed} on {text!r} with voice {voice!r}")
    return np.frombuffer(bytes(self._pcm), np.int16)


def _link_data(source: Path, target: Path) -> Path:
  """Fills `target` with links to espeak-ng's data; its folder of variants is a real one, and returned."""
  variants = target / "voices" / "!v"
  variants.mkdir(parents=True)
  for folder, into in ((source, target), (source / "voices" / "!v", variants)):
    for entry in folder.iterdir():
      if entry.name != "voices":
        (into / entry.name).symlink_to(entry)
  return variants


@functools.cache
def _library() -> _Library:
  try:
    import espeakng_loader
  except ImportError as error:
    raise UserError(
      "speech for the miniature needs espeak-ng (the wheel espeakng-loader): "
      'pip install "slm_jax[mini]"'
    ) from error
  return _Library(espeakng_loader.get_library_path(), espeakng_loader.get_data_path())
