"""Weights in and out; the public entry points are re-exported here."""

from slm_jax.interop.language_model_source import load_language_model, open_language_model
from slm_jax.interop.speech_encoder_source import load_speech_encoder, open_speech_encoder

__all__ = [
  "load_language_model",
  "load_speech_encoder",
  "open_language_model",
  "open_speech_encoder",
]
