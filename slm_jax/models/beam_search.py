"""Beam search as Hugging Face Transformers does it; part of `slm_jax.models.decoding`.

B batch, K beams, T new tokens at most, V vocab.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from slm_jax.models.generation_config import GenerationConfig, GenerationResult, Step
from slm_jax.models.t5 import DecodingCache, T5Config

# Marks a place in the beam that holds no sequence: below any sum of log-probabilities, yet finite.
_NONE = -1.0e9


class _Beams(NamedTuple):
  """State of the search. A place without a sequence scores about `_NONE`."""

  index: jax.Array  # [], how many tokens were chosen
  tokens: jax.Array  # [B, K], the last ones of the open sequences
  open_ids: jax.Array  # [B, K, T]
  open_scores: jax.Array  # [B, K], sums of log-probabilities, best first
  ended_ids: jax.Array  # [B, K, T]
  ended_scores: jax.Array  # [B, K], divided by the length penalty, best first
  is_ended: jax.Array  # bool [B, K], the place holds a sequence
  improvable: jax.Array  # bool [B], an open sequence may still beat an ended one
  cache: DecodingCache


def beam_search(
  step: Step,
  cache: DecodingCache,
  tokens: jax.Array,
  limits: jax.Array,
  config: GenerationConfig,
  model: T5Config,
  rows: NamedSharding | None,
) -> GenerationResult:
  """Keeps and stops as Hugging Face Transformers does.

  At every step the 2K best continuations of a row are found. Those among the first K that end (by
  EOS or by the row's limit) compete for K places of ended sequences; the best K that do not end
  stay open. `early_stopping` decides when a row is closed; a closed row takes no more sequences.

  Args:
    step: the model.
    cache: holds what stands before `tokens`, the same for all beams of a row.
    tokens: int32 [B, K], the tokens to continue, the same for all beams of a row.
    limits: int32 [B], most new tokens of a row, 1 to T.
    config: how to choose tokens.
    model: pad, EOS, V.
    rows: how rows are spread over a mesh, if they are.

  Returns:
    ids [B, K, T] and scores [B, K], best first.
  """
  beams = config.num_beams

  def unfinished(state: _Beams) -> jax.Array:
    return state.improvable.any()

  def extend(state: _Beams) -> _Beams:
    logits, log_z, cache = step(state.tokens, state.index, state.cache)
    scores, parents, tokens = _best_continuations(logits, log_z, state.open_scores, rows)
    ids = _pick(state.open_ids, parents)
    ids = jax.lax.dynamic_update_slice(ids, tokens[..., None], (0, 0, state.index))
    length = state.index + 1
    at_limit = length >= limits
    ends = (tokens == model.eos_id) | at_limit[:, None]

    open_scores, chosen = _top_k(jnp.where(ends, scores + _NONE, scores), beams, rows)

    admitted = ends & (jnp.arange(2 * beams) < beams) & state.improvable[:, None]
    candidates = jnp.where(admitted, scores / _penalty(length, config), _NONE)
    merged_scores = jnp.concatenate([state.ended_scores, candidates], axis=1)
    ended_scores, kept = _top_k(merged_scores, beams, rows)
    ended_ids = _pick(jnp.concatenate([state.ended_ids, ids], axis=1), kept)
    is_ended = _pick(jnp.concatenate([state.is_ended, admitted], axis=1), kept)

    # The limit closes a row whatever its scores are: comparisons with NaN never would.
    closed = at_limit | _is_closed(open_scores, ended_scores, is_ended, length, limits, config)
    parent_of_open = _pick(parents, chosen)
    return _Beams(
      index=length,
      tokens=_pick(tokens, chosen),
      open_ids=_pick(ids, chosen),
      open_scores=open_scores,
      ended_ids=ended_ids,
      ended_scores=ended_scores,
      is_ended=is_ended,
      improvable=state.improvable & ~closed,
      cache=cache._replace(
        tokens=jax.tree.map(lambda x: _reorder(x, parent_of_open), cache.tokens)
      ),
    )

  shape = tokens.shape
  ids = jnp.full((*shape, config.max_new_tokens), model.pad_id, jnp.int32)
  empty = jnp.full(shape, _NONE)
  state = _Beams(
    index=jnp.zeros((), jnp.int32),
    tokens=tokens,
    open_ids=ids,
    # All beams start alike; only the first may be continued, or they would stay alike.
    open_scores=empty.at[:, 0].set(0.0),
    ended_ids=ids,
    ended_scores=empty,
    is_ended=jnp.zeros(shape, bool),
    improvable=jnp.ones(shape[0], bool),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, extend, state)
  return GenerationResult(state.ended_ids, state.ended_scores)


def _penalty(length: jax.Array, config: GenerationConfig) -> jax.Array:
  return length.astype(jnp.float32) ** config.length_penalty


def _is_closed(open_scores, ended_scores, is_ended, length, limits, config) -> jax.Array:
  """Whether K sequences have ended and, by `early_stopping`, no open one may beat them, bool [B].

  Args:
    open_scores, ended_scores, is_ended: [B, K], as in `_Beams`.
    length: int32 [], tokens of the open sequences.
    limits: int32 [B].
  """
  full = is_ended.all(-1)
  if config.early_stopping is True:
    return full
  if config.early_stopping == "never" and config.length_penalty > 0:
    length = limits
  return full & (open_scores[:, 0] / _penalty(length, config) <= ended_scores.min(-1))


def _best_continuations(
  logits: jax.Array, log_z: jax.Array, open_scores: jax.Array, rows: NamedSharding | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The 2K best ways to continue, best first.

  Args:
    logits: [B, K, V].
    log_z: the logarithm of the probabilities' denominator, [B, K].
    open_scores: sums of log-probabilities so far, [B, K].
    rows: as in `beam_search`.

  Returns:
    (scores, the beams they continue, their tokens), [B, 2K] each.
  """
  batch, beams, _ = logits.shape
  # A row's best 2K are among the best 2K of each beam.
  best, tokens = _top_k(logits, 2 * beams, rows)
  log_probs = best - log_z[..., None] + open_scores[..., None]
  scores, flat = _top_k(log_probs.reshape(batch, -1), 2 * beams, rows)
  tokens = jnp.take_along_axis(tokens.reshape(batch, -1), flat, axis=1)
  return scores, flat // (2 * beams), tokens


def _top_k(values: jax.Array, k: int, rows: NamedSharding | None) -> tuple[jax.Array, jax.Array]:
  """The k greatest along the last axis of values [B, …, V], and their indices, [B, …, k] each."""

  def top_k(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # On CPU this is fast in two dimensions only.
    best, indices = jax.lax.top_k(x.reshape(-1, x.shape[-1]), k)
    return best.reshape(*x.shape[:-1], k), indices.reshape(*x.shape[:-1], k)

  if rows is None:
    return top_k(values)
  # XLA does not split it along the batch by itself, but gathers all rows on every device.
  return jax.shard_map(top_k, mesh=rows.mesh, in_specs=rows.spec, out_specs=rows.spec)(values)


def _pick(values: jax.Array, beams: jax.Array) -> jax.Array:
  """values [B, M, …], beams int32 [B, K] -> [B, K, …]."""
  return jnp.take_along_axis(values, beams.reshape(*beams.shape, *[1] * (values.ndim - 2)), axis=1)


def _reorder(cache: jax.Array, beams: jax.Array) -> jax.Array:
  """cache [L, B, K, T, N, H] -> the same, beam k of a row taken from its old beam beams[:, k]."""
  return jnp.take_along_axis(cache, beams[None, :, :, None, None, None], axis=2)
