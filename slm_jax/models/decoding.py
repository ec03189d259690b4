"""Autoregressive decoding of T5 with a KV cache: greedy, sampling and beam search.

B batch, S memory length, T new tokens at most, V vocab, K beams.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slm_jax.models.t5 import T5, DecodingCache, T5Config

# Marks a place in the beam that holds no sequence: below any sum of log-probabilities, yet finite.
_NONE = -1.0e9

# tokens int32 [B, K], their position int32 [], cache -> (logits fp32 [B, K, V], cache)
Step = Callable[[jax.Array, jax.Array, DecodingCache], tuple[jax.Array, DecodingCache]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
  """How to choose tokens.

  `temperature` 0 is greedy; above 0 tokens are drawn, after the `top_k` likeliest were kept (0 =
  all), and of those the likeliest whose probabilities reach `top_p` together. `num_beams` above 1
  is beam search, and sequences compete by log-probability / length**length_penalty.
  """

  max_new_tokens: int = 64
  num_beams: int = 1
  length_penalty: float = 1.0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self):
    for name in ("max_new_tokens", "num_beams"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    if self.temperature < 0:
      raise ValueError(f"temperature={self.temperature}: expected 0 (greedy) or more")
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or more")
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(f"top_p={self.top_p}: expected a value in (0, 1]")
    if self.num_beams > 1 and self.temperature > 0:
      raise ValueError(
        f"num_beams={self.num_beams} with temperature={self.temperature}: beams are not sampled; "
        "set num_beams to 1 or temperature to 0"
      )


class GenerationResult(NamedTuple):
  """ids int32 [B, T]: no start token, EOS kept, pad after it.

  scores fp32 [B]: log-probability of the ids, EOS included, divided by their number to the power of
  the length penalty.
  """

  ids: jax.Array
  scores: jax.Array


def generate(
  t5: T5, params: dict, memory: jax.Array, mask: jax.Array, config: GenerationConfig
) -> GenerationResult:
  """Decodes until every row has ended or has `max_new_tokens`.

  Compiled once per shape and config; another seed needs no new compilation.

  Args:
    t5: the model.
    params: its parameters, unboxed.
    memory: the encoder's output [B, S, D].
    mask: bool [B, S], True = real.
    config: how to choose tokens.
  """
  if 2 * config.num_beams > t5.config.vocab_size:
    raise ValueError(
      f"num_beams={config.num_beams}: expected at most half of vocab_size={t5.config.vocab_size}"
    )
  unseeded = dataclasses.replace(config, seed=0)
  return _generate(t5.config, unseeded, params, memory, mask, config.seed)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(t5_config: T5Config, config: GenerationConfig, params, memory, mask, seed):
  t5, variables = T5(t5_config), {"params": params}
  cache = t5.apply(
    variables,
    memory,
    mask,
    num_beams=config.num_beams,
    length=config.max_new_tokens,
    method="init_cache",
  )

  def step(tokens, index, cache):
    return t5.apply(variables, tokens, index, cache, mask, method="decode_step")

  if config.num_beams > 1:
    return _beam_search(step, cache, config, t5_config)  # pyright: ignore[reportArgumentType]
  return _sample(step, cache, config, t5_config, jax.random.key(seed))  # pyright: ignore[reportArgumentType]


def _sample(
  step: Step, cache: DecodingCache, config: GenerationConfig, model: T5Config, key: jax.Array
) -> GenerationResult:
  """One sequence per row, token by token."""
  batch = cache.memory.key.shape[1]

  class State(NamedTuple):
    index: jax.Array  # [], position of the token that is chosen next
    tokens: jax.Array  # [B], the last ones chosen
    done: jax.Array  # bool [B], ended with EOS
    ids: jax.Array  # [B, T]
    lengths: jax.Array  # [B]
    scores: jax.Array  # [B], sums of log-probabilities
    cache: DecodingCache

  def unfinished(state: State) -> jax.Array:
    return (state.index < config.max_new_tokens) & ~state.done.all()

  def extend(state: State) -> State:
    logits, cache = step(state.tokens[:, None], state.index, state.cache)
    logits = logits[:, 0]  # [B, V]
    chosen = _choose(logits, config, jax.random.fold_in(key, state.index))
    chosen_logits = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    log_prob = chosen_logits - jax.nn.logsumexp(logits, axis=-1)
    tokens = jnp.where(state.done, model.pad_id, chosen)
    return State(
      index=state.index + 1,
      tokens=tokens,
      done=state.done | (tokens == model.eos_id),
      ids=jax.lax.dynamic_update_slice(state.ids, tokens[:, None], (0, state.index)),
      lengths=state.lengths + ~state.done,
      scores=state.scores + jnp.where(state.done, 0.0, log_prob),
      cache=cache,
    )

  start = jnp.full(batch, model.pad_id, jnp.int32)
  state = State(
    index=jnp.zeros((), jnp.int32),
    tokens=start,
    done=jnp.zeros(batch, bool),
    ids=jnp.full((batch, config.max_new_tokens), model.pad_id, jnp.int32),
    lengths=jnp.zeros(batch, jnp.int32),
    scores=jnp.zeros(batch),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, extend, state)
  lengths = state.lengths.astype(jnp.float32)
  return GenerationResult(state.ids, state.scores / lengths**config.length_penalty)


def _choose(logits: jax.Array, config: GenerationConfig, key: jax.Array) -> jax.Array:
  """logits fp32 [B, V] -> tokens int32 [B]."""
  if config.temperature == 0:
    return logits.argmax(-1).astype(jnp.int32)
  return jax.random.categorical(key, truncate(logits, config)).astype(jnp.int32)


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


class _Beams(NamedTuple):
  """State of the beam search. A place without a sequence scores about `_NONE`."""

  index: jax.Array  # [], position of the token that is chosen next
  tokens: jax.Array  # [B, K], the last ones of the open sequences
  open_ids: jax.Array  # [B, K, T]
  open_scores: jax.Array  # [B, K], sums of log-probabilities, best first
  ended_ids: jax.Array  # [B, K, T]
  ended_scores: jax.Array  # [B, K], divided by the length penalty, best first
  is_ended: jax.Array  # bool [B, K], the place holds a sequence
  improvable: jax.Array  # bool [B], an open sequence may still beat an ended one
  cache: DecodingCache


def _beam_search(
  step: Step, cache: DecodingCache, config: GenerationConfig, model: T5Config
) -> GenerationResult:
  """Beam search that keeps and stops as Hugging Face Transformers does with `early_stopping=False`.

  At every step the 2K best continuations of a row are found. Those among the first K that end (by
  EOS or by the length limit) compete for K places of ended sequences; the best K that do not end
  stay open. A row is closed when K sequences have ended and the best open one, divided by its
  present length's penalty, is behind the worst of them.
  """
  beams, limit = config.num_beams, config.max_new_tokens

  def unfinished(state: _Beams) -> jax.Array:
    return (state.index < limit) & state.improvable.any()

  def extend(state: _Beams) -> _Beams:
    logits, cache = step(state.tokens, state.index, state.cache)
    scores, parents, tokens = _best_continuations(logits, state.open_scores)  # [B, 2K] each
    ids = _pick(state.open_ids, parents)
    ids = jax.lax.dynamic_update_slice(ids, tokens[..., None], (0, 0, state.index))
    ends = (tokens == model.eos_id) | (state.index == limit - 1)

    open_scores, chosen = jax.lax.top_k(jnp.where(ends, scores + _NONE, scores), beams)

    length = (state.index + 1).astype(jnp.float32)
    penalty = length**config.length_penalty
    admitted = ends & (jnp.arange(2 * beams) < beams) & state.improvable[:, None]
    merged_scores = jnp.concatenate(
      [state.ended_scores, jnp.where(admitted, scores / penalty, _NONE)], axis=1
    )
    ended_scores, kept = jax.lax.top_k(merged_scores, beams)
    ended_ids = _pick(jnp.concatenate([state.ended_ids, ids], axis=1), kept)
    is_ended = _pick(jnp.concatenate([state.is_ended, admitted], axis=1), kept)

    worst = jnp.where(is_ended.all(-1), ended_scores.min(-1), _NONE)
    parent_of_open = _pick(parents, chosen)
    return _Beams(
      index=state.index + 1,
      tokens=_pick(tokens, chosen),
      open_ids=_pick(ids, chosen),
      open_scores=open_scores,
      ended_ids=ended_ids,
      ended_scores=ended_scores,
      is_ended=is_ended,
      improvable=state.improvable & (open_scores[:, 0] / penalty > worst),
      cache=cache._replace(
        tokens=jax.tree.map(lambda x: _reorder(x, parent_of_open), cache.tokens)
      ),
    )

  batch = cache.memory.key.shape[1]
  ids = jnp.full((batch, beams, limit), model.pad_id, jnp.int32)
  empty = jnp.full((batch, beams), _NONE)
  state = _Beams(
    index=jnp.zeros((), jnp.int32),
    tokens=ids[:, :, 0],
    open_ids=ids,
    # All beams start alike; only the first may be continued, or they would stay alike.
    open_scores=empty.at[:, 0].set(0.0),
    ended_ids=ids,
    ended_scores=empty,
    is_ended=jnp.zeros((batch, beams), bool),
    improvable=jnp.ones(batch, bool),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, extend, state)
  return GenerationResult(state.ended_ids[:, 0], state.ended_scores[:, 0])


def _best_continuations(
  logits: jax.Array, open_scores: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The 2K best ways to continue, best first.

  Args:
    logits: [B, K, V].
    open_scores: sums of log-probabilities so far, [B, K].

  Returns:
    (scores, the beams they continue, their tokens), [B, 2K] each.
  """
  batch, beams, vocab = logits.shape
  # A row's best 2K are among the best 2K of each beam. On CPU top_k is fast in two dimensions only.
  best, tokens = jax.lax.top_k(logits.reshape(-1, vocab), 2 * beams)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  log_probs = best.reshape(batch, beams, -1) - log_z[..., None] + open_scores[..., None]
  scores, flat = jax.lax.top_k(log_probs.reshape(batch, -1), 2 * beams)
  tokens = jnp.take_along_axis(tokens.reshape(batch, -1), flat, axis=1)
  return scores, flat // (2 * beams), tokens


def _pick(values: jax.Array, beams: jax.Array) -> jax.Array:
  """values [B, M, …], beams int32 [B, K] -> [B, K, …]."""
  return jnp.take_along_axis(values, beams.reshape(*beams.shape, *[1] * (values.ndim - 2)), axis=1)


def _reorder(cache: jax.Array, beams: jax.Array) -> jax.Array:
  """cache [L, B, K, T, N, H] -> the same, beam k of a row taken from its old beam beams[:, k]."""
  return jnp.take_along_axis(cache, beams[None, :, :, None, None, None], axis=2)
