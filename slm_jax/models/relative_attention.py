"""Self-attention with relative positions (Transformer-XL, arXiv:1901.02860 §3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.models.quantization import Dense

_init = nn.initializers.lecun_normal()


def relative_positions(num_frames: int, width: int) -> np.ndarray:
  """Sinusoids of the distances T, T-1, ..., -(T-1), query minus key: fp32 [2T, width].

  No pair of frames is T apart: that row makes `relative_shift` a matter of reshapes.
  """
  distance = np.arange(num_frames, -num_frames, -1, dtype=np.float32)
  frequency = 10_000.0 ** (-np.arange(0, width, 2) / width)
  angle = distance[:, None] * frequency
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def relative_shift(scores: jax.Array) -> jax.Array:
  """Scores by distance [..., T, 2T] (T first) to scores by key [..., T, T] (ibid., appendix B)."""
  leading, num_frames = scores.shape[:-2], scores.shape[-2]
  flat = scores.reshape(*leading, 2 * num_frames * num_frames)[..., num_frames:]
  return flat.reshape(*leading, num_frames, 2 * num_frames - 1)[..., :num_frames]


def local_window(num_frames: int, left: int, right: int) -> np.ndarray:
  """bool [T, T]: True where a query may see a key at most `left` frames back or `right` ahead."""
  ahead = np.arange(num_frames)[None, :] - np.arange(num_frames)[:, None]
  return (ahead >= -left) & (ahead <= right)


class RelativeAttention(nn.Module):
  """Multi-head self-attention; a query that may see no real key gives zeros."""

  num_heads: int
  dtype: str
  weights: str = "float"

  @nn.compact
  def __call__(self, x: jax.Array, allowed: jax.Array, positions: jax.Array) -> jax.Array:
    """Attends.

    Args:
      x: [B, T, D].
      allowed: bool [B or 1, T, S], True where the query may see the key.
      positions: [2T, D] of `relative_positions`.

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

    query = project(x, "query") * head_dim**-0.5
    key, value = project(x, "key"), project(x, "value")
    distance = project(positions.astype(self.dtype), "position")  # [2T, N, H]
    scale = head_dim**-0.5
    content = jnp.einsum("BTNH,BSNH->BNTS", query + scale * bias("content_bias"), key)
    by_distance = jnp.einsum("BTNH,RNH->BNTR", query + scale * bias("position_bias"), distance)
    scores = (content + relative_shift(by_distance)).astype(jnp.float32)
    allowed = allowed[:, None]
    # A finite floor and a second mask: a row of -inf alone would give NaN, such a row is to give
    # zeros.
    scores = jnp.where(allowed, scores, -1e30)
    weights = jnp.where(allowed, jax.nn.softmax(scores, axis=-1), 0).astype(self.dtype)
    y = jnp.einsum("BNTS,BSNH->BTNH", weights, value).reshape(x.shape)
    axes = ("joined_kv", "embed")
    return Dense(width, axes, self.dtype, _init, use_bias=True, weights=self.weights, name="out")(y)
