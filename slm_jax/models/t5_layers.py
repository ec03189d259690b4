"""The layers of T5's encoder and decoder (arXiv:1910.10683, §2.1; gated FFN: arXiv:2002.05202)."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import Dense
from slm_jax.models.relative_position import RelativePositionBias
from slm_jax.models.t5_attention import Attention, KeyValue
from slm_jax.models.t5_config import T5Config

_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_ACTIVATION = {"gelu": nn.gelu, "relu": nn.relu, "silu": nn.silu, "linear": lambda x: x}


class RMSNorm(nn.Module):
  """Root mean square norm in fp32, without mean or bias."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in the compute type."""
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    scale = cast(jax.Array, self.param("scale", scale_init, (x.shape[-1],)))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(
      jnp.mean(jnp.square(x), -1, keepdims=True) + self.config.layer_norm_epsilon
    )
    return (x * scale.astype(jnp.float32)).astype(self.config.dtype)


class MLP(nn.Module):
  """FFN: the product of one or two activated projections, projected back."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    cfg = self.config
    activations = cfg.mlp_activations
    hidden = jnp.ones((), cfg.dtype)
    for index, activation in enumerate(activations):
      name = "wi" if len(activations) == 1 else f"wi_{index}"
      hidden = hidden * _ACTIVATION[activation](_dense(cfg, cfg.mlp_dim, ("embed", "mlp"), name)(x))
    hidden = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic=not train)
    return _dense(cfg, cfg.emb_dim, ("mlp", "embed"), "wo")(hidden)


def _dense(cfg: T5Config, features: int, axes: tuple[str, str], name: str) -> Dense:
  return Dense(features, axes, cfg.dtype, _init, weights=cfg.weights, name=name)


def relpos_bias(cfg: T5Config) -> RelativePositionBias:
  """The bias of a stack, or of a layer when each has its own."""
  return RelativePositionBias(cfg.num_heads, cfg.relpos_num_buckets)


class EncoderLayer(nn.Module):
  """Bidirectional self-attention, then the FFN."""

  config: T5Config

  def setup(self):
    cfg = self.config
    if cfg.per_layer_relpos:
      self.relpos_bias = relpos_bias(cfg)
    self.pre_attention_layer_norm = RMSNorm(cfg)
    self.attention = Attention(cfg)
    self.pre_mlp_layer_norm = RMSNorm(cfg)
    self.mlp = MLP(cfg)
    self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, x, mask, position, train: bool) -> tuple[jax.Array, None]:
    """x [B, S, D], mask bool [B, 1, 1, S] or [B, 1, S, S] -> (x, None).

    `position` is the stack's bias [1, N, S, S], or buckets [S, S] when each layer has a bias.
    """
    bias = self.relpos_bias(position) if self.config.per_layer_relpos else position
    y = self.attention(self.pre_attention_layer_norm(x), mask, bias, train=train)
    x = x + self.dropout(y, deterministic=not train)
    y = self.mlp(self.pre_mlp_layer_norm(x), train=train)
    return keep_rows_apart(x + self.dropout(y, deterministic=not train)), None


class DecoderLayer(nn.Module):
  """Causal self-attention, attention over the encoder's output, then the FFN."""

  config: T5Config

  def setup(self):
    cfg = self.config
    if cfg.per_layer_relpos:
      self.relpos_bias = relpos_bias(cfg)
    self.pre_self_attention_layer_norm = RMSNorm(cfg)
    self.self_attention = Attention(cfg)
    self.pre_cross_attention_layer_norm = RMSNorm(cfg)
    self.encoder_decoder_attention = Attention(cfg)
    self.pre_mlp_layer_norm = RMSNorm(cfg)
    self.mlp = MLP(cfg)
    self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, x, memory, mask, causal_mask, position, train: bool) -> tuple[jax.Array, None]:
    """All positions at once.

    x [B, T, D], memory [B, S, D], mask bool [B, 1, 1, S] or [B, 1, T, S], causal_mask bool
    [1, 1, T, T] or [B, 1, T, T] -> (x, None). `position` as in the encoder, for T targets.
    """
    bias = self.relpos_bias(position) if self.config.per_layer_relpos else position
    y = self.self_attention(self.pre_self_attention_layer_norm(x), causal_mask, bias, train=train)
    x = x + self.dropout(y, deterministic=not train)
    cross = self.encoder_decoder_attention
    y = cross.attend(
      self.pre_cross_attention_layer_norm(x), cross.project(memory), mask, train=train
    )
    x = x + self.dropout(y, deterministic=not train)
    y = self.mlp(self.pre_mlp_layer_norm(x), train=train)
    return keep_rows_apart(x + self.dropout(y, deterministic=not train)), None

  def project_memory(self, carry: None, memory: jax.Array) -> tuple[None, KeyValue]:
    """memory [B, S, D] -> (None, this layer's keys and values of it [B, S, N, H])."""
    return carry, self.encoder_decoder_attention.project(memory)

  def step(self, carry, layer, memory, mask, causal_mask, position, index) -> tuple[tuple, None]:
    """M new tokens of every beam.

    Args:
      carry: (x [B, K, M, D], self-attention cache of all layers [L, B, K, T, N, H]).
      layer: int32 [], this layer's index.
      memory: this layer's keys and values of the memory, [B, S, N, H]; shared by the beams.
      mask: bool [B, 1, 1, S].
      causal_mask: bool [B, M, T].
      position: the stack's bias [1, N, M, T] or buckets [M, T].
      index: int32 [], position of the first new token.

    Returns:
      (carry, None).
    """
    x, cache = carry
    bias = self.relpos_bias(position) if self.config.per_layer_relpos else position
    y, cache = self.self_attention.step(
      self.pre_self_attention_layer_norm(x), cache, layer, index, causal_mask, bias
    )
    x = x + y
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    y = self.encoder_decoder_attention.attend(
      self.pre_cross_attention_layer_norm(flat), memory, mask
    )
    x = x + y.reshape(x.shape)
    return (x + self.mlp(self.pre_mlp_layer_norm(x)), cache), None
