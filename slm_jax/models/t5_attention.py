"""T5's multi-head attention: no bias terms, no scaling by the head width, relative positions added
to the scores.

B batch, S key length, T query length, D model width, N heads, H head width, L layers, K beams,
M new tokens of each beam.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.t5_config import T5Config

_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class KeyValue(NamedTuple):
  """Keys and values, [B, S, N, H] each, or with leading layer and beam axes where it says so."""

  key: jax.Array
  value: jax.Array


class Attention(nn.Module):
  """Attention whose steps are separate, so that cached decoding uses the same weights and the same
  formulas.
  """

  config: T5Config

  def setup(self):
    cfg = self.config
    joined = cfg.num_heads * cfg.head_dim

    def query_init(*args, **kwargs) -> jax.Array:
      # The scores are not scaled, so the query starts smaller by sqrt(H) instead (Mesh TensorFlow,
      # T5X).
      return _fan_in(*args, **kwargs) * cfg.head_dim**-0.5

    def dense(features: int, axes: tuple[str, str], init=_fan_in, lora_rank: int = 0) -> Dense:
      return Dense(features, axes, cfg.dtype, init, weights=cfg.weights, lora_rank=lora_rank)

    self.query = dense(joined, ("embed", "joined_kv"), query_init, cfg.lora_rank)
    self.key = dense(joined, ("embed", "joined_kv"))
    self.value = dense(joined, ("embed", "joined_kv"), lora_rank=cfg.lora_rank)
    self.out = dense(cfg.emb_dim, ("joined_kv", "embed"))
    # As in T5X, one draw for all queries.
    self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

  def _split(self, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

  def project(self, x: jax.Array) -> KeyValue:
    """x [B, S, D] -> keys and values [B, S, N, H]."""
    return KeyValue(self._split(self.key(x)), self._split(self.value(x)))

  def attend(
    self,
    x: jax.Array,
    key_value: KeyValue,
    mask: jax.Array,
    bias: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Queries from x [B, T, D] over given keys and values [B, S, N, H].

    Args:
      mask: bool, broadcast to [B, 1, T, S]; True = may be attended to.
      bias: broadcast to [B, N, T, S], or None.

    Returns:
      [B, T, D].
    """
    query = self._split(self.query(x))
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key_value.key, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores, mask, bias).astype(query.dtype)
    weights = self.dropout(weights, deterministic=not train)
    y = jnp.einsum("BNTS,BSNH->BTNH", weights, key_value.value)
    return self.out(y.reshape(*x.shape[:2], -1))

  def __call__(self, x, mask, bias=None, *, train: bool = False) -> jax.Array:
    """Self-attention: x [B, T, D] -> [B, T, D]; mask and bias as in `attend`."""
    return self.attend(x, self.project(x), mask, bias, train=train)

  def step(
    self,
    x: jax.Array,
    cache: KeyValue,
    layer: jax.Array,
    position: jax.Array,
    mask: jax.Array,
    bias: jax.Array,
  ) -> tuple[jax.Array, KeyValue]:
    """Self-attention of the new tokens of every beam, over all tokens so far.

    Args:
      x: [B, K, M, D].
      cache: of all layers, [L, B, K, T, N, H]; this layer's are read and extended.
      layer: int32 [], this layer's index.
      position: int32 [], the first new token's position; the last one's is below T.
      mask: bool [B, M, T], True = may be attended to.
      bias: [1, N, M, T].

    Returns:
      ([B, K, M, D], the cache with the new keys and values written from `position` on).
    """
    new = self.project(x)

    def write(stack: jax.Array, entry: jax.Array) -> jax.Array:
      entry = entry[None].astype(stack.dtype)
      return jax.lax.dynamic_update_slice(stack, entry, (layer, 0, 0, position, 0, 0))

    cache = KeyValue(write(cache.key, new.key), write(cache.value, new.value))
    keys, values = (jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache)
    query = self._split(self.query(x))
    scores = jnp.einsum("BKMNH,BKTNH->BKNMT", query, keys, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores, mask[:, None, None], bias[:, None]).astype(query.dtype)
    y = jnp.einsum("BKNMT,BKTNH->BKMNH", weights, values)
    return self.out(y.reshape(*x.shape[:3], -1)), cache


def masked_softmax(scores: jax.Array, mask: jax.Array, bias: jax.Array | None) -> jax.Array:
  """Softmax over the last axis of scores + bias where `mask` is True, in fp32."""
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  # Finite, so that a row with nothing to attend to is uniform rather than NaN.
  return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
