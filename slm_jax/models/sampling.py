"""Decoding token by token: the likeliest each time, or draws; part of `slm_jax.models.decoding`.

B batch, R draws per row, T new tokens at most, V vocab.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from slm_jax.models.generation_config import GenerationConfig, GenerationResult, Step
from slm_jax.models.t5 import DecodingCache, T5Config


class _Draws(NamedTuple):
  index: jax.Array  # [], how many tokens were chosen
  tokens: jax.Array  # [B, R], the last ones
  done: jax.Array  # bool [B, R], ended with EOS or at the row's limit
  ids: jax.Array  # [B, R, T]
  lengths: jax.Array  # [B, R]
  scores: jax.Array  # [B, R], sums of log-probabilities
  cache: DecodingCache


def sample(
  step: Step,
  cache: DecodingCache,
  tokens: jax.Array,
  limits: jax.Array,
  config: GenerationConfig,
  model: T5Config,
  key: jax.Array,
) -> GenerationResult:
  """One sequence at a time, R times per row; without temperature all of them would be the same.

  Args:
    step: the model.
    cache: holds what stands before `tokens`.
    tokens: int32 [B, R], the tokens to continue.
    limits: int32 [B], most new tokens of a row, 1 to T.
    config: how to choose tokens.
    model: pad, EOS, V.
    key: of the draws.

  Returns:
    ids [B, R, T] and scores [B, R], best first.
  """
  shape, last = tokens.shape, config.max_new_tokens

  def unfinished(state: _Draws) -> jax.Array:
    return ~state.done.all()

  def extend(state: _Draws) -> _Draws:
    logits, log_z, cache = step(state.tokens, state.index, state.cache)
    flat = logits.reshape(-1, model.vocab_size)
    chosen = _choose(flat, config, jax.random.fold_in(key, state.index))[:, None]
    log_prob = jnp.take_along_axis(flat, chosen, axis=-1).reshape(shape) - log_z
    tokens = jnp.where(state.done, model.pad_id, chosen.reshape(shape))
    return _Draws(
      index=state.index + 1,
      tokens=tokens,
      done=state.done | (tokens == model.eos_id) | (state.index + 1 >= limits[:, None]),
      ids=jax.lax.dynamic_update_slice(state.ids, tokens[..., None], (0, 0, state.index)),
      lengths=state.lengths + ~state.done,
      scores=state.scores + jnp.where(state.done, 0.0, log_prob),
      cache=cache,
    )

  state = _Draws(
    index=jnp.zeros((), jnp.int32),
    tokens=tokens,
    done=jnp.zeros(shape, bool),
    ids=jnp.full((*shape, last), model.pad_id, jnp.int32),
    lengths=jnp.zeros(shape, jnp.int32),
    scores=jnp.zeros(shape),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, extend, state)
  scores = state.scores / state.lengths.astype(jnp.float32) ** config.length_penalty
  order = jnp.argsort(scores, axis=1, descending=True)
  ids = jnp.take_along_axis(state.ids, order[..., None], axis=1)
  return GenerationResult(ids, jnp.take_along_axis(scores, order, axis=1))


def _choose(logits: jax.Array, config: GenerationConfig, key: jax.Array) -> jax.Array:
  """logits fp32 [B, V] -> tokens int32 [B]."""
  if config.temperature == 0:
    return likeliest(logits)
  return jax.random.categorical(key, truncate(logits, config)).astype(jnp.int32)


def likeliest(logits: jax.Array) -> jax.Array:
  """logits [B, V] -> int32 [B], the first of the greatest.

  XLA's argmax on CPU compares one after the other: at V = 250112 it took a sixth of a step, and
  these two passes a thirtieth.
  """
  greatest = logits == logits.max(-1, keepdims=True)
  vocab = logits.shape[-1]
  return jnp.where(greatest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1).min(-1)


def truncate(logits: jax.Array, config: GenerationConfig) -> jax.Array:
  """Tempers logits [B, V]; tokens outside top-k and nucleus (arXiv:1904.09751, §3.1) go to -inf."""
  logits = logits / config.temperature
  if 0 < config.top_k < logits.shape[-1]:
    lowest = jax.lax.top_k(logits, config.top_k)[0][:, -1:]
    logits = jnp.where(logits < lowest, -jnp.inf, logits)
  if config.top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token stays if those ahead of it do not reach top_p; the first always does.
    kept = jnp.cumsum(probabilities, axis=-1) - probabilities < config.top_p
    lowest = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits < lowest, -jnp.inf, logits)
  return logits
