"""Decoding in instalments: so many tokens a call, that texts can be shown while they grow.

Greedy, or drawn, each row with a temperature and seed of its own. Greedy rows have the tokens that
`decoding.generate` gives them. B batch, S memory length, T new tokens at most, V vocab.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slm_jax.models.sampling import likeliest
from slm_jax.models.t5 import T5, DecodingCache, T5Config


class DecodeState(NamedTuple):
  """Where a batch of texts stands."""

  index: jax.Array  # int32 [], tokens chosen so far in each row
  tokens: jax.Array  # int32 [B], the last ones
  done: jax.Array  # bool [B], ended with EOS or at the row's limit
  ids: jax.Array  # int32 [B, T], EOS kept, pad after it
  cache: DecodingCache


class RowOptions(NamedTuple):
  """What each row asks for."""

  limits: jax.Array  # int32 [B], most new tokens, up to T; 0 ends a row at once
  temperatures: jax.Array  # fp32 [B], 0 is greedy
  seeds: jax.Array  # uint32 [B], of the draws


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(
  config: T5Config, max_new_tokens: int, params: dict, memory: jax.Array, mask: jax.Array
) -> DecodeState:
  """Before the first token; memory [B, S, D] of the LM's encoder, mask bool [B, S], True = real."""
  batch = memory.shape[0]
  first = jnp.zeros(batch, jnp.int32)
  cache: Any = T5(config).apply(
    {"params": params}, memory, mask, first, length=max_new_tokens, method="init_cache"
  )
  return DecodeState(
    index=jnp.zeros((), jnp.int32),
    tokens=jnp.full(batch, config.pad_id, jnp.int32),
    done=jnp.zeros(batch, bool),
    ids=jnp.full((batch, max_new_tokens), config.pad_id, jnp.int32),
    cache=cache,
  )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def advance(
  config: T5Config,
  count: int,
  params: dict,
  state: DecodeState,
  mask: jax.Array,
  options: RowOptions,
) -> DecodeState:
  """Up to `count` tokens more; fewer where all rows end. The state given is used up."""
  last = jnp.minimum(state.index + count, state.ids.shape[1])
  state = state._replace(done=state.done | (state.index >= options.limits))

  def unfinished(state: DecodeState) -> jax.Array:
    return (state.index < last) & ~state.done.all()

  def extend(state: DecodeState) -> DecodeState:
    found: Any = T5(config).apply(
      {"params": params},
      state.tokens[:, None, None],
      state.index,
      state.cache,
      mask,
      method="decode_step",
    )
    logits, cache = found
    tokens = jnp.where(state.done, config.pad_id, _choose(logits[:, 0], options, state.index))
    index = state.index + 1
    return DecodeState(
      index=index,
      tokens=tokens,
      done=state.done | (tokens == config.eos_id) | (index >= options.limits),
      ids=jax.lax.dynamic_update_slice(state.ids, tokens[:, None], (0, state.index)),
      cache=cache,
    )

  return jax.lax.while_loop(unfinished, extend, state)


def _choose(logits: jax.Array, options: RowOptions, index: jax.Array) -> jax.Array:
  """logits fp32 [B, V] -> tokens int32 [B]."""

  def draw(logits: jax.Array) -> jax.Array:
    def noise(seed: jax.Array) -> jax.Array:
      key = jax.random.fold_in(jax.random.key(seed), index)
      return jax.random.gumbel(key, logits.shape[1:])

    warm = (options.temperatures > 0)[:, None]
    tempered = logits / jnp.where(warm, options.temperatures[:, None], 1.0)
    return jnp.where(warm, tempered + jax.vmap(noise)(options.seeds), logits)

  return likeliest(jax.lax.cond((options.temperatures > 0).any(), draw, lambda x: x, logits))
