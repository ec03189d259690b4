"""Attention written for one head of one example, and run for all of them as the device likes it.

Accelerators do all heads at once. A CPU does one after another: its scores [T, S] then stay in the
cache from the product that makes them to the one that uses them, where those of all heads together
would travel to memory and back several times.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

OneHead = Callable[..., jax.Array]


def softmax_over_keys(
  scores: jax.Array, value: jax.Array, allowed: jax.Array | None = None
) -> jax.Array:
  """Weighted values of one head; a query that may see no key gives zeros.

  Args:
    scores: fp32 [T, S].
    value: [S, H].
    allowed: bool, broadcast to [T, S]; None is everything.

  Returns:
    [T, H], in the value's type.
  """
  if allowed is not None:
    # A finite floor and a second mask: a row of -inf alone would give NaN.
    scores = jnp.where(allowed, scores, -1e30)
  weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  if allowed is not None:
    weights = jnp.where(allowed, weights, 0)
  total = weights.sum(axis=-1, keepdims=True)
  y = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
  return (y / jnp.maximum(total, 1e-30)).astype(value.dtype)


def over_heads(
  one_head: OneHead,
  *split: jax.Array,
  rows: tuple[jax.Array, ...] = (),
  heads: tuple[Any, ...] = (),
) -> jax.Array:
  """Runs `one_head` for every row of the batch and every head.

  Args:
    one_head: (*split, *rows, *heads), of one row and head -> [T, H].
    split: arrays [B, T or S, N, H], such as queries, keys and values; a head gets [T or S, H].
    rows: arrays [B, ...] that all heads of a row share.
    heads: arrays [N, ...] that all rows share.

  Returns:
    [B, T, N, H].
  """
  of_row = jax.vmap(one_head, (1,) * len(split) + (None,) * len(rows) + (0,) * len(heads), 1)
  axes = (0,) * (len(split) + len(rows)) + (None,) * len(heads)

  def together(*arrays: jax.Array) -> jax.Array:
    return jax.vmap(of_row, axes)(*arrays)

  def one_by_one(*arrays: jax.Array) -> jax.Array:
    split_, rest = arrays[: len(split)], arrays[len(split) :]
    rows_, heads_ = rest[: len(rows)], rest[len(rows) :]
    split_ = tuple(jnp.moveaxis(x, 2, 1) for x in split_)  # [B, N, T, H]

    def of_one_row(row):
      mine, shared = row
      return jax.lax.map(lambda head: one_head(*head[0], *shared, *head[1]), (mine, heads_))

    return jnp.moveaxis(jax.lax.map(of_one_row, (split_, rows_)), 1, 2)

  # Rows and heads that lie on several devices stay there only if they are done at once.
  if jax.sharding.get_abstract_mesh().size > 1:
    return together(*split, *rows, *heads)
  return jax.lax.platform_dependent(*split, *rows, *heads, cpu=one_by_one, default=together)
