"""Local self-attention of Gemma's audio towers, in blocks with their context.

The queries of a block of W frames meet the C = left + W + right keys around it, each query those of
its own window. Scores are capped; distances between frames enter as in Transformer-XL
(arXiv:1901.02860 §3.3), without its biases.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoders.gemma_audio_config import GemmaAudioConfig
from slm_jax.models.speech_encoders.gemma_audio_linear import Linear, init

# W; the result does not depend on it.
_BLOCK = 12
_LARGEST_TIMESCALE = 10_000.0


def distances(left: int, right: int, width: int) -> np.ndarray:
  """Sinusoids of the distances left, left - 1, … -right, query minus key: fp32 [left + 1 + right, width]."""
  count = width // 2
  increment = np.log(_LARGEST_TIMESCALE) / max(count - 1, 1)
  angle = np.arange(left, -right - 1, -1)[:, None] * np.exp(-increment * np.arange(count))
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def blocks(x: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] -> [B, U, W, ...], U = ceil(T / W), filled up with zeros."""
  missing = -x.shape[1] % size
  x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))
  return x.reshape(x.shape[0], x.shape[1] // size, size, *x.shape[2:])


def contexts(x: jax.Array, size: int, left: int, right: int) -> jax.Array:
  """[B, T, ...] -> [B, U, C, ...]: blocks of W = `size` with what lies around them, zeros past the ends."""
  count, context = -(-x.shape[1] // size), left + size + right
  pieces = -(-context // size)
  after = (count + pieces - 1) * size - left - x.shape[1]
  x = jnp.pad(x, ((0, 0), (left, after)) + ((0, 0),) * (x.ndim - 2))
  x = blocks(x, size)
  return jnp.concatenate([x[:, k : k + count] for k in range(pieces)], axis=2)[:, :, :context]


def by_key(scores: jax.Array, context: int) -> jax.Array:
  """Scores by distance [..., W, left + 1 + right] to scores by key [..., W, C].

  Query a's column f belongs to key a + f. What stands where no distance is given is arbitrary.
  """
  *leading, size, count = scores.shape
  scores = jnp.pad(scores, ((0, 0),) * (scores.ndim - 1) + ((0, context + 1 - count),))
  flat = scores.reshape(*leading, size * (context + 1))[..., : size * context]
  return flat.reshape(*leading, size, context)


class LocalAttention(nn.Module):
  """Multi-head self-attention within a window."""

  config: GemmaAudioConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; real frames see real ones alone."""
    cfg, (batch, num_frames, width) = self.config, x.shape
    heads, left, right = cfg.num_heads, cfg.left_context, cfg.right_context
    head_dim = width // heads
    size = max(1, min(_BLOCK, num_frames))
    context = left + size + right

    def project(name: str) -> jax.Array:
      y = Linear(cfg, width, ("embed", "joined_kv"), name=name)(x)
      return y.reshape(batch, num_frames, heads, head_dim)

    scale_init = nn.with_logical_partitioning(nn.initializers.zeros, ("kv",))
    scale = jnp.asarray(self.param("per_dim_scale", scale_init, (head_dim,)), jnp.float32)
    scale = nn.softplus(scale) / (np.log(2.0) * head_dim**0.5)  # 1 / sqrt(H) at 0
    query = blocks(project("query") * scale.astype(cfg.dtype), size)  # [B, U, W, N, H]
    key, value = (contexts(project(name), size, left, right) for name in ("key", "value"))

    table = jnp.asarray(distances(left, right, width), cfg.dtype)
    distance = Dense(width, ("embed", "joined_kv"), cfg.dtype, init, name="position")(table)
    distance = distance.reshape(-1, heads, head_dim)  # [F, N, H]

    def product(equation: str, *operands: jax.Array) -> jax.Array:
      return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)

    scores = cfg.key_scale * product("buwnh,bucnh->bunwc", query, key)
    scores = scores + by_key(product("buwnh,fnh->bunwf", query, distance), context)
    scores = cfg.logit_cap * jnp.tanh(scores / cfg.logit_cap)
    ahead = np.arange(context) - left - np.arange(size)[:, None]
    seen = (ahead >= -left) & (ahead <= right)
    allowed = contexts(mask, size, left, right)[:, :, None, None] & seen
    # A finite floor: padding alone sees nothing, and must not become NaN.
    weights = nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    y = product("bunwc,bucnh->buwnh", weights.astype(cfg.dtype), value).astype(cfg.dtype)
    y = y.reshape(batch, y.shape[1] * size, width)[:, :num_frames]
    return Linear(cfg, width, ("joined_kv", "embed"), name="out")(y)
