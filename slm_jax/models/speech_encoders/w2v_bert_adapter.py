"""The convolutional adapter behind some w2v-BERT 2.0 encoders: transformer layers of fewer frames."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoders.w2v_bert_attention import SelfAttention
from slm_jax.models.speech_encoders.w2v_bert_config import W2vBertAdapterConfig, W2vBertConfig
from slm_jax.models.speech_encoders.w2v_bert_layers import (
  FeedForward,
  StridedGLU,
  init,
  layer_norm,
  rematerialised,
)


def first(count: jax.Array, num_frames: int) -> jax.Array:
  """count int32 [B] -> bool [B, T], True in the first `count` frames."""
  return jnp.arange(num_frames)[None] < count[:, None]


class AdapterLayer(nn.Module):
  """Pre-norm attention over pooled frames, beside pooled frames; pre-norm feed-forward."""

  config: W2vBertConfig
  adapter: W2vBertAdapterConfig

  @nn.compact
  def __call__(self, x: jax.Array, present: jax.Array, real_after: jax.Array) -> jax.Array:
    """Keeps one frame in `stride`.

    Args:
      x: [B, T, D].
      present: int32 [B], frames that the convolutions read; the others are 0 to them.
      real_after: int32 [B], frames of the result that attention reads.

    Returns:
      [B, T', D].
    """
    cfg, adapter = self.config, self.adapter

    def pooled(name: str) -> jax.Array:
      y = layer_norm(cfg, f"{name}_norm")(x)
      y = jnp.where(first(present, x.shape[1])[..., None], y, 0)
      conv = StridedGLU(adapter.kernel_size, adapter.stride, adapter.padding, cfg.dtype, name=name)
      return conv(y)

    residual, y = pooled("residual_conv"), pooled("attention_conv")
    mask = first(real_after, y.shape[1])
    y = residual + SelfAttention(cfg.num_heads, cfg.dtype, name="attention")(y, mask)
    return y + FeedForward(cfg, adapter.activation, name="ffn")(layer_norm(cfg, "ffn_norm")(y))


class ConvAdapter(nn.Module):
  """The half-step feed-forward and the narrower projection where there are any, then the layers.

  The published convolutions know no mask: where an example's last frame reads beyond its end, it
  reads whatever frame is there, and that depends on how the batch was padded. Here every example gets
  what it would get there alone: nothing beyond its end, hence zeros, or the one frame that the
  published frontend appends to an odd number of mel frames, which no attention reads.
  """

  config: W2vBertConfig
  adapter: W2vBertAdapterConfig

  @nn.compact
  def __call__(self, x: jax.Array, real: jax.Array, present: jax.Array) -> jax.Array:
    """Shortens.

    Args:
      x: [B, T, D], the encoder's frames.
      real: int32 [B], number of real ones.
      present: int32 [B], the same, and the frame appended to an odd number of mel frames.

    Returns:
      [B, T', adapter.output_dim], T' = adapter.num_frames(T).
    """
    cfg, adapter = self.config, self.adapter
    if adapter.intermediate_ffn:
      x = x + 0.5 * FeedForward(cfg, "relu", name="intermediate_ffn")(x)
    if adapter.output_dim != cfg.model_dim:
      axes = ("embed", "mlp")
      dense = Dense(adapter.output_dim, axes, cfg.dtype, init, use_bias=True, name="projection")
      x = layer_norm(cfg, "projection_norm")(dense(x))
    layer = rematerialised(AdapterLayer, cfg)
    # A loop: a scan would need as many frames behind a layer as before it.
    for index in range(adapter.num_layers):
      real = adapter.num_frames(real, 1)
      x = layer(cfg, adapter, name=f"layers_{index}")(x, present, real)
      present = adapter.num_frames(present, 1)
    return x
