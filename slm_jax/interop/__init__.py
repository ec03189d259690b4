"""Weights in and out: `load_language_model` and `load_speech_encoder` are the public entry points."""

from slm_jax.interop.hf_t5 import load_language_model
from slm_jax.interop.speech_encoder_folder import load_speech_encoder

__all__ = ["load_language_model", "load_speech_encoder"]
