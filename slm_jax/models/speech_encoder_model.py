"""A loaded speech encoder, ready to be called."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.models.speech_encoder import SpeechEncoderConfig, SpeechEncoderOutput
from slm_jax.models.speech_encoders.families import make_speech_encoder
from slm_jax.models.waveform_check import checked_audio
from slm_jax.models.windowed_encoding import EncodedPart, encode_in_windows, window_lengths


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

    Raises:
      ValueError: `audio` or `lengths` is not as above; see `checked_audio`.
    """
    return self._features(*checked_audio(audio, lengths))

  def windows(
    self,
    audio: np.ndarray,
    *,
    keep_seconds: float | None = None,
    context_seconds: float | None = None,
  ) -> Iterator[EncodedPart]:
    """Encodes one waveform of any length in windows; memory does not grow with it.

    How far a frame is from that of one pass over the whole depends on how far the encoder looks, and
    on `context_seconds`; docs/speech_encoders.md has figures.

    Args:
      audio: int16, or float in [-1, 1], [S] at 16 kHz.
      keep_seconds: what each window adds, rounded up to whole frames (chunks, with chunk-wise
        attention); None is 32, or half of an encoder's fixed window.
      context_seconds: what is encoded besides, on each side; None is half of `keep_seconds`.

    Yields:
      The frames, in order.

    Raises:
      ValueError: a window is nothing, or longer than the encoder takes; `audio` is not [S], or as of
        `features` while windows are encoded.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1:
      raise ValueError(f"audio is {list(audio.shape)}, expected one waveform [S]")
    if keep_seconds is None:
      limit = self.config.max_samples
      keep_seconds = 32.0 if limit is None else limit / (2 * SAMPLE_RATE)
    if context_seconds is None:
      context_seconds = keep_seconds / 2
    kept, context = window_lengths(
      self.config, keep_seconds=keep_seconds, context_seconds=context_seconds
    )
    return encode_in_windows(self, self.config, audio, kept=kept, context=context)

  def __call__(self, audio, lengths) -> SpeechEncoderOutput:
    """Encodes; arguments and errors as of `features`."""
    return self._encode(self.params, *checked_audio(audio, lengths))
