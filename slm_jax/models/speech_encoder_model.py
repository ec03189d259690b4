"""A loaded speech encoder, ready to be called."""

from typing import Any

import jax
import jax.numpy as jnp

from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput
from slm_jax.models.speech_encoders.families import make_speech_encoder


class SpeechEncoderModel:
  """A speech encoder with its weights; calls are jitted, one compilation per shape.

  Attributes:
    config: its shape, of the family's own class.
    params: nested dict of arrays.
    tokenizer: turns ids of the CTC head's classes into text with `decode(ids)`, or None.
  """

  def __init__(self, config: SpeechEncoderConfig, params: dict, tokenizer: Any = None):
    self.config, self.params, self.tokenizer = config, params, tokenizer
    module = make_speech_encoder(config)
    self._features = jax.jit(
      lambda audio, lengths: module.apply({}, audio, lengths, method="features")
    )
    self._encode = jax.jit(
      lambda params, audio, lengths: module.apply({"params": params}, audio, lengths)
    )

  def features(self, audio, lengths) -> tuple[jax.Array, jax.Array]:
    """What the encoder's first layer reads.

    Args:
      audio: int16, or float in [-1, 1], [B, S] at 16 kHz.
      lengths: [B], in samples.

    Returns:
      (fp32 [B, T', F], 0 at padding; mask bool [B, T'], True = real).
    """
    return self._features(jnp.asarray(audio), jnp.asarray(lengths, jnp.int32))

  def __call__(self, audio, lengths) -> SpeechEncoderOutput:
    """Encodes; arguments as of `features`."""
    return self._encode(self.params, jnp.asarray(audio), jnp.asarray(lengths, jnp.int32))
