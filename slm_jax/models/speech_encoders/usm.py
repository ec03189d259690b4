"""USM's speech encoder: waveform in, frames and CTC logits out (arXiv:2303.01037 §2)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.log_mel import log_mel
from slm_jax.audio.spec_augment import spec_augment
from slm_jax.models.conformer import ConformerConfig, ConformerStack, dense
from slm_jax.models.speech_encoder import SpeechEncoderOutput
from slm_jax.models.subsampling import Subsampling


class USMEncoder(nn.Module):
  """Log-mel, subsampling to 25 frames/s, Conformer blocks, CTC head."""

  config: ConformerConfig

  def setup(self):
    cfg = self.config
    self.subsampling = Subsampling(cfg.subsampling_channels, cfg.model_dim, cfg.dtype)
    self.conformer = ConformerStack(cfg)
    if cfg.vocab_size:
      self.ctc_head = dense(cfg, cfg.vocab_size, ("embed", "vocab"), "ctc_head")
    if cfg.intermediate_vocab_size:
      size = cfg.intermediate_vocab_size
      self.intermediate_ctc_head = dense(cfg, size, ("embed", "vocab"), "intermediate_ctc_head")

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> log-mel fp32 [B, T', F], mask bool [B, T']; 10 ms each."""
    cfg = self.config
    return log_mel(audio, lengths, num_mel_bins=cfg.num_mel_bins, config=cfg.log_mel)

  def __call__(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> SpeechEncoderOutput:
    """Encodes.

    Args:
      audio: int16, or float in [-1, 1], [B, S] at 16 kHz; what lies past the lengths is ignored.
      lengths: int32 [B], in samples.
      train: turns on dropout (rng "dropout") and, where configured, SpecAugment (rng
        "spec_augment").

    Returns:
      The frames, T = config.num_frames(S) of them, 40 ms each.
    """
    features, mask = self.features(audio, lengths)
    return self.encode_features(features, mask, train=train)

  def encode_features(
    self, features: jax.Array, mask: jax.Array, *, train: bool = False
  ) -> SpeechEncoderOutput:
    """As `__call__`, from features [B, T', F] with mask bool [B, T']."""
    cfg = self.config
    if train and cfg.spec_augment is not None:
      features = spec_augment(self.make_rng("spec_augment"), features, mask, cfg.spec_augment)
    x, mask = self.subsampling(features, mask)
    frames, middle = self.conformer.with_middle(x, mask, train=train)
    logits = self.ctc_head(frames).astype(jnp.float32) if cfg.vocab_size else None
    middle_logits = None
    if middle is not None:
      middle_logits = self.intermediate_ctc_head(middle).astype(jnp.float32)
    return SpeechEncoderOutput(
      frames=frames,
      mask=mask,
      ctc_logits=logits,
      intermediate_ctc_logits=middle_logits,
      blank_id=cfg.blank_id,
    )
