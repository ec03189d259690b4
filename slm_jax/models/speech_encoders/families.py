"""The speech encoders there are, by the name that a saved folder's config.json gives them."""

import dataclasses

from flax import linen as nn

from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoders.gemma_audio import GemmaAudioEncoder
from slm_jax.models.speech_encoders.gemma_audio_config import (
  Gemma3nAudioConfig,
  Gemma4AudioConfig,
)
from slm_jax.models.speech_encoders.granite_speech import GraniteSpeechConfig, GraniteSpeechEncoder
from slm_jax.models.speech_encoders.lasr import LasrConfig, LasrEncoder
from slm_jax.models.speech_encoders.parakeet import ParakeetConfig, ParakeetEncoder
from slm_jax.models.speech_encoders.usm import USMEncoder
from slm_jax.models.speech_encoders.w2v_bert import W2vBertEncoder
from slm_jax.models.speech_encoders.w2v_bert_config import W2vBertConfig
from slm_jax.models.speech_encoders.whisper import WhisperConfig, WhisperEncoder


@dataclasses.dataclass(frozen=True)
class Family:
  """A kind of encoder: the class of its config, and the module made from one."""

  config: type[SpeechEncoderConfig]
  module: type[nn.Module]


FAMILIES = {
  "conformer_ctc": Family(ConformerConfig, USMEncoder),
  "gemma3n_audio": Family(Gemma3nAudioConfig, GemmaAudioEncoder),
  "gemma4_audio": Family(Gemma4AudioConfig, GemmaAudioEncoder),
  "granite_speech": Family(GraniteSpeechConfig, GraniteSpeechEncoder),
  "lasr": Family(LasrConfig, LasrEncoder),
  "parakeet": Family(ParakeetConfig, ParakeetEncoder),
  "w2v_bert": Family(W2vBertConfig, W2vBertEncoder),
  "whisper": Family(WhisperConfig, WhisperEncoder),
}


def family_of(config: SpeechEncoderConfig) -> str:
  """The name of the family a config belongs to."""
  return next(name for name, family in FAMILIES.items() if family.config is type(config))


def make_speech_encoder(config: SpeechEncoderConfig, name: str | None = None) -> nn.Module:
  """The module of a config; its interface is that of `slm_jax.models.speech_encoder`."""
  return FAMILIES[family_of(config)].module(config, name=name)  # pyright: ignore[reportCallIssue]
