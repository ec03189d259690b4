"""w2v-BERT's self-attention, with any of its ways to tell how far apart two frames are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.models.head_attention import over_heads, softmax_over_keys
from slm_jax.models.quantization import Dense
from slm_jax.models.relative_attention import relative_shift

_init = nn.initializers.lecun_normal()


def clipped_shift(scores: jax.Array, left: int) -> jax.Array:
  """Scores by distance to scores by key, without a gather.

  Args:
    scores: [..., T, R]; column r of a query is for keys r - left frames after it, the first and the
      last one also for all beyond.
    left: frames back that column 0 stands for.

  Returns:
    [..., T, T], by query and key.
  """
  *leading, num_frames, distances = scores.shape
  # Rows of T + R, read again as rows of T + R - 1: row t starts t columns further right.
  furthest = jnp.broadcast_to(scores[..., -1:], (*leading, num_frames, num_frames))
  rows = jnp.concatenate([scores, furthest], axis=-1)
  flat = rows.reshape(*leading, num_frames * (num_frames + distances))[..., :-num_frames]
  shifted = flat.reshape(*leading, num_frames, num_frames + distances - 1)
  shifted = shifted[..., left : left + num_frames]
  # What wrapped around from the row before lies where the distance is clipped.
  frame = np.arange(num_frames)
  beyond = frame[None, :] - frame[:, None] < -left
  return jnp.where(beyond, scores[..., :1], shifted)


def interleaved_sinusoids(num_frames: int, width: int) -> np.ndarray:
  """Sines and cosines, in turn, of distances T … 1 - T, query minus key: fp32 [2T, width]."""
  distance = num_frames - np.arange(2 * num_frames, dtype=np.float64)
  angle = distance[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
  pairs = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
  return pairs.reshape(2 * num_frames, width).astype(np.float32)


def rotate(x: jax.Array, base: float) -> jax.Array:
  """x [B, T, N, H] -> the same with halves of each head turned by angles that grow with T."""
  num_frames, head_dim = x.shape[1], x.shape[-1]
  frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)
  angle = (np.arange(num_frames)[:, None] * frequency)[:, None]
  cos, sin = (jnp.asarray(f(angle), x.dtype) for f in (np.cos, np.sin))
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class SelfAttention(nn.Module):
  """Multi-head attention of every frame to every real frame.

  Attributes:
    num_heads: N.
    dtype: type of computation.
    positions: of `w2v_bert_config.POSITIONS`.
    left, right: furthest distances that "relative_key" tells apart.
    rotary_base: for "rotary".
  """

  num_heads: int
  dtype: str
  positions: str | None = None
  left: int = 0
  right: int = 0
  rotary_base: float = 10_000.0

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, T, D], mask bool [B, T], True = real -> [B, T, D]; padding attends too."""
    width, heads = x.shape[-1], self.num_heads
    head_dim = width // heads

    def project(inputs: jax.Array, name: str, use_bias: bool = True) -> jax.Array:
      axes = ("embed", "joined_kv")
      y = Dense(width, axes, self.dtype, _init, use_bias=use_bias, name=name)(inputs)
      return y.reshape(*inputs.shape[:-1], heads, head_dim)

    def bias(name: str) -> jax.Array:
      init = nn.with_logical_partitioning(nn.initializers.zeros, ("heads", "kv"))
      return jnp.asarray(self.param(name, init, (heads, head_dim)), self.dtype)

    located = x
    if self.positions == "rotary":  # before the projections, of queries and keys alone
      by_head = x.reshape(*x.shape[:-1], heads, head_dim)
      located = rotate(by_head, self.rotary_base).reshape(x.shape)
    scale = head_dim**-0.5
    query = project(located, "query") * scale
    key, value = project(located, "key"), project(x, "value")
    table, biases = None, ()
    if self.positions == "relative_key":
      init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("relpos_buckets", "kv"))
      shape = (self.left + self.right + 1, head_dim)
      table = jnp.asarray(self.param("distances", init, shape), self.dtype)
    elif self.positions == "relative":
      sinusoids = jnp.asarray(interleaved_sinusoids(x.shape[1], width), self.dtype)
      distance = project(sinusoids, "position", use_bias=False)
      biases = (scale * bias("content_bias"), scale * bias("position_bias"))
      biases = (*biases, jnp.moveaxis(distance, 1, 0))
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def one_head(query, key, value, mask, *relative):
      content = query
      if relative:
        content_bias, position_bias, distance = relative
        content = query + content_bias
        by_distance = relative_shift(product(query + position_bias, distance.T))
      elif table is not None:
        by_distance = clipped_shift(product(query, table.T), self.left)
      else:
        by_distance = 0.0
      return softmax_over_keys(product(content, key.T) + by_distance, value, mask[None])

    y = over_heads(one_head, query, key, value, rows=(mask,), heads=biases).reshape(x.shape)
    return Dense(width, ("joined_kv", "embed"), self.dtype, _init, use_bias=True, name="out")(y)
