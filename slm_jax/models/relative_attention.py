"""Self-attention with relative positions (Transformer-XL, arXiv:1901.02860 §3.3)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.models.attention_window import AttentionWindow
from slm_jax.models.head_attention import over_heads, softmax_over_keys
from slm_jax.models.quantization import Dense

_init = nn.initializers.lecun_normal()


def relative_positions(window: AttentionWindow, width: int) -> np.ndarray:
  """Sinusoids of the distances, query minus key, that a block has: fp32 [W + K, width].

  They fall by one from row to row. No pair is as far apart as the first row says: it makes
  `relative_shift` a matter of reshapes.
  """
  largest = window.block - window.first_key
  distance = largest - np.arange(window.block + window.num_keys, dtype=np.float32)
  frequency = 10_000.0 ** (-np.arange(0, width, 2) / width)
  angle = distance[:, None] * frequency
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def relative_shift(scores: jax.Array) -> jax.Array:
  """Scores by distance [..., W, W + K] to scores by key [..., W, K] (ibid., appendix B).

  Query a's score of key b stands in column W - a + b.
  """
  *leading, num_queries, num_distances = scores.shape
  flat = scores.reshape(*leading, num_queries * num_distances)[..., num_queries:]
  shifted = flat.reshape(*leading, num_queries, num_distances - 1)
  return shifted[..., : num_distances - num_queries]


class RelativeAttention(nn.Module):
  """Multi-head self-attention; a query that may see no real key gives zeros."""

  num_heads: int
  dtype: str
  weights: str = "float"

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, positions: jax.Array, window: AttentionWindow
  ) -> jax.Array:
    """Attends.

    Args:
      x: [B, T, D].
      mask: bool [B, T], True = real.
      positions: [W + K, D] of `relative_positions`.
      window: what each frame may see; T is that of its plan.

    Returns:
      [B, T, D].
    """
    width, heads = x.shape[-1], self.num_heads
    head_dim = width // heads

    def project(inputs: jax.Array, name: str) -> jax.Array:
      axes = ("embed", "joined_kv")
      dense = Dense(width, axes, self.dtype, _init, weights=self.weights, name=name)
      return dense(inputs).reshape(*inputs.shape[:-1], heads, head_dim)

    def bias(name: str) -> jax.Array:
      init = nn.with_logical_partitioning(nn.initializers.zeros, ("heads", "kv"))
      return jnp.asarray(self.param(name, init, (heads, head_dim)), self.dtype)

    def in_blocks(y: jax.Array, keys: bool) -> jax.Array:
      y = window.blocks(y)
      y = window.keys(y) if keys else y
      return y.reshape(-1, *y.shape[2:])  # [B * T / W, W or K, N, H]

    query = in_blocks(project(x, "query") * head_dim**-0.5, False)
    key, value = (in_blocks(project(x, name), True) for name in ("key", "value"))
    distance = project(positions.astype(self.dtype), "position")  # [W + K, N, H]
    scale = head_dim**-0.5
    biases = (scale * bias("content_bias"), scale * bias("position_bias"))
    allowed = window.allowed(mask)

    def one_head(query, key, value, allowed, distance, content_bias, position_bias):
      product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
      by_distance = relative_shift(product(query + position_bias, distance.T))
      scores = product(query + content_bias, key.T) + by_distance
      return softmax_over_keys(scores, value, allowed)

    y = over_heads(
      one_head,
      query,
      key,
      value,
      rows=(allowed.reshape(-1, *allowed.shape[2:]),),
      heads=(jnp.moveaxis(distance, 1, 0), *biases),
    )
    y = y.reshape(x.shape[0], -1, width)[:, : x.shape[1]]
    axes = ("joined_kv", "embed")
    return Dense(width, axes, self.dtype, _init, use_bias=True, weights=self.weights, name="out")(y)
