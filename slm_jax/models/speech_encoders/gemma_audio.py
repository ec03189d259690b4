"""The audio towers of Gemma 3n and Gemma 4, descendants of USM (arXiv:2303.01037).

Log-mel, subsampling, Conformer blocks with local attention and causal convolutions. Frames are what the
multimodal model's embedder reads. Any length is encoded; the published models were given 30 s at most.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.gemma_log_mel import gemma_log_mel
from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoder import SpeechEncoderOutput
from slm_jax.models.speech_encoders.gemma_audio_config import (
  Gemma3nAudioConfig,
  Gemma4AudioConfig,
)
from slm_jax.models.speech_encoders.gemma_audio_layers import block_stack
from slm_jax.models.speech_encoders.gemma_audio_linear import init
from slm_jax.models.speech_encoders.gemma_audio_subsampling import Subsampling


class GemmaAudioEncoder(nn.Module):
  """Gemma 3n keeps every fourth frame at the end, Gemma 4 projects them."""

  config: Gemma3nAudioConfig | Gemma4AudioConfig

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> log-mel fp32 [B, T', F], mask bool [B, T']; 10 ms each."""
    return gemma_log_mel(audio, lengths, self.config.log_mel)

  @nn.compact
  def __call__(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> SpeechEncoderOutput:
    """Encodes.

    Args:
      audio: int16, or float in [-1, 1], [B, S] at 16 kHz; what lies past the lengths is ignored.
      lengths: int32 [B], in samples.
      train: changes nothing.

    Returns:
      The frames, T = config.num_frames(S) of them.
    """
    cfg = self.config
    features, mask = self.features(audio, lengths)
    x, mask = Subsampling(cfg, name="subsampling")(features, mask)
    x, _ = block_stack(cfg, "layers")(x, mask)
    x, mask = x[:, :: cfg.reduction_factor], mask[:, :: cfg.reduction_factor]
    if isinstance(cfg, Gemma4AudioConfig):
      axes = ("embed", "mlp")
      x = Dense(cfg.output_dim, axes, cfg.dtype, init, use_bias=True, name="output")(x)
    return SpeechEncoderOutput(frames=jnp.where(mask[..., None], x, 0), mask=mask, ctc_logits=None)
