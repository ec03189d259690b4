"""w2v-BERT 2.0 (Seamless, arXiv:2312.05187 §3.2.1): a Conformer over pairs of filterbank frames.

Half-step feed-forward, self-attention with clipped relative distances, causal depthwise convolution,
half-step feed-forward, norm; layer norms throughout. A model fine-tuned with CTC has a linear head.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.audio.kaldi_fbank import kaldi_fbank, normalise_bins, stack_pairs
from slm_jax.models.conformer import DepthwiseConv
from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoder import SpeechEncoderOutput
from slm_jax.models.speech_encoders.w2v_bert_adapter import ConvAdapter
from slm_jax.models.speech_encoders.w2v_bert_attention import SelfAttention
from slm_jax.models.speech_encoders.w2v_bert_config import ACTIVATIONS, STACKED, W2vBertConfig
from slm_jax.models.speech_encoders.w2v_bert_layers import (
  FeedForward,
  init,
  layer_norm,
  rematerialised,
)


class ConvModule(nn.Module):
  """Pre-norm, GLU, causal depthwise convolution, norm, activation, linear."""

  config: W2vBertConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; padding is read as zeros."""
    cfg, (num_frames, width) = self.config, x.shape[1:]
    dense = functools.partial(Dense, width, dtype=cfg.dtype, kernel_init=init)
    y = layer_norm(cfg, "norm")(x)
    gate = nn.sigmoid(dense(axes=("embed", "mlp"), name="gate")(y))
    y = jnp.where(mask[..., None], dense(axes=("embed", "mlp"), name="value")(y) * gate, 0)
    # A centred convolution of what comes half a kernel later reads the past alone.
    y = jnp.pad(y, ((0, 0), (cfg.conv_kernel_size // 2, 0), (0, 0)))
    y = DepthwiseConv(cfg.conv_kernel_size, cfg.dtype, name="depthwise")(y)[:, :num_frames]
    y = ACTIVATIONS[cfg.activation](layer_norm(cfg, "conv_norm", "mlp")(y))
    return dense(axes=("mlp", "embed"), name="out")(y)


class Block(nn.Module):
  """One macaron block."""

  config: W2vBertConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; the second result is what a scan collects."""
    cfg = self.config
    attention = SelfAttention(
      cfg.num_heads,
      cfg.dtype,
      cfg.positions,
      cfg.left_positions,
      cfg.right_positions,
      cfg.rotary_base,
      name="attention",
    )
    half_step = functools.partial(FeedForward, cfg, cfg.activation)
    x = x + 0.5 * half_step(name="ffn_in")(layer_norm(cfg, "ffn_in_norm")(x))
    x = x + attention(layer_norm(cfg, "attention_norm")(x), mask)
    x = x + ConvModule(cfg, name="conv")(x, mask)
    x = x + 0.5 * half_step(name="ffn_out")(layer_norm(cfg, "ffn_out_norm")(x))
    return keep_rows_apart(layer_norm(cfg, "norm")(x)), None


class W2vBertEncoder(nn.Module):
  """Filterbank in pairs of frames, projection, blocks, adapter, CTC head; the last two optional."""

  config: W2vBertConfig

  def features(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """audio [B, S], lengths int32 [B] -> fp32 [B, T', F], mask bool [B, T']; 20 ms each.

    Kaldi's filterbank, every bin normalised over the example, two frames side by side. T' counts
    the last of an odd number of frames, which is never real.
    """
    features, mask = kaldi_fbank(audio, lengths, self.config.fbank)
    return stack_pairs(normalise_bins(features, mask), mask)

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
      The frames, T = config.num_frames(S) of them, 20 ms each, or the adapter's stride times that.
    """
    cfg = self.config
    features, mask = self.features(audio, lengths)
    if features.shape[1] == 0:  # too short for any: one frame of padding, cut off at the end
      features, mask = (
        jnp.zeros_like(x, shape=(len(x), 1, *x.shape[2:])) for x in (features, mask)
      )
    axes = ("mel", "embed")
    dense = Dense(cfg.model_dim, axes, cfg.dtype, init, use_bias=True, name="projection")
    x = dense(layer_norm(cfg, "feature_norm", "mel")(features))
    x = jnp.where(mask[..., None], x, 0)
    layers = nn.scan(
      rematerialised(Block, cfg),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]  mask
      length=cfg.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = layers(cfg, name="layers")(x, mask)
    real = jnp.sum(mask, axis=1)
    if cfg.adapter is not None:
      present = -(-cfg.fbank.num_frames(lengths) // STACKED)
      x = ConvAdapter(cfg, cfg.adapter, name="adapter")(x, real, present)
      real = cfg.adapter.num_frames(real)
    x = x[:, : cfg.num_frames(audio.shape[1])]
    mask = jnp.arange(x.shape[1])[None] < real[:, None]
    frames = jnp.where(mask[..., None], x, 0)
    logits = None
    if cfg.vocab_size:
      axes = ("embed", "vocab")
      head = Dense(cfg.vocab_size, axes, cfg.dtype, init, use_bias=True, name="ctc_head")
      logits = head(frames).astype(jnp.float32)
    return SpeechEncoderOutput(frames=frames, mask=mask, ctc_logits=logits, blank_id=cfg.blank_id)
