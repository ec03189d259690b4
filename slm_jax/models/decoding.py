"""Autoregressive decoding of T5 with a KV cache: greedy, sampling and beam search.

B batch, S memory length, P prefix length, T new tokens at most, V vocab, K beams.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.models.beam_search import beam_search
from slm_jax.models.generation_config import GenerationConfig, GenerationResult
from slm_jax.models.sampling import sample
from slm_jax.models.t5 import T5, DecodingCache, T5Config


def generate(
  t5: T5,
  params: dict,
  memory: jax.Array,
  mask: jax.Array,
  config: GenerationConfig,
  *,
  prefix: jax.Array | np.ndarray | None = None,
  max_lengths: jax.Array | np.ndarray | None = None,
) -> GenerationResult:
  """Decodes until every row has ended or has reached its limit.

  Compiled once per shape and config: another seed, prefix or limit needs no new compilation.

  Args:
    t5: the model.
    params: its parameters, unboxed.
    memory: the encoder's output [B, S, D].
    mask: bool [B, S], True = real. If its rows are spread over the devices of a mesh, so is the
      KV cache.
    config: how to choose tokens.
    prefix: int32 [B, P], tokens that every row's output is made to begin with, without the start
      token; rows are padded at the end with `pad_id` and may be of any length, 0 included. As with
      Hugging Face's `decoder_input_ids`, limits, scores and the length penalty count the new
      tokens alone, and an EOS within the prefix ends nothing; unlike there, the ids returned do
      not repeat the prefix.
    max_lengths: int32 [B], most new tokens of each row, 1 to `max_new_tokens` (default, and what
      greater values on a device count as; values on the host are checked).

  Raises:
    ValueError: a shape, a type or a limit is not as above, or 2K is more than V.
  """
  if 2 * config.num_beams > t5.config.vocab_size:
    raise ValueError(
      f"num_beams={config.num_beams}: expected at most half of vocab_size={t5.config.vocab_size}"
    )
  batch = memory.shape[0]
  if prefix is None:
    prefix = np.zeros((batch, 0), np.int32)
  if prefix.ndim != 2 or prefix.shape[0] != batch or not np.issubdtype(prefix.dtype, np.integer):
    raise ValueError(f"prefix is {prefix.dtype} {prefix.shape}: expected int32 [{batch}, P]")
  if max_lengths is None:
    max_lengths = np.full(batch, config.max_new_tokens, np.int32)
  _check_limits(max_lengths, batch, config.max_new_tokens)
  unseeded = dataclasses.replace(config, seed=0)
  # What is on the host stays there until it is compiled for: on one of several hosts it would lie on
  # a device of that one alone.
  limits, prefix = max_lengths.astype(np.int32), prefix.astype(np.int32)
  rows = _row_sharding(mask)
  return _generate(t5.config, unseeded, rows, params, memory, mask, prefix, limits, config.seed)


def lower_generate(
  t5_config: T5Config,
  params: dict,
  memory: jax.ShapeDtypeStruct,
  mask: jax.ShapeDtypeStruct,
  config: GenerationConfig,
):
  """`generate` traced for shapes that carry shardings, without a prefix; `.compile()` does the rest."""
  batch = memory.shape[0]
  rows = _row_sharding(mask)  # pyright: ignore[reportArgumentType]
  prefix = jax.ShapeDtypeStruct((batch, 0), jnp.int32)
  limits = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
  unseeded = dataclasses.replace(config, seed=0)
  return _generate.lower(
    t5_config, unseeded, rows, params, memory, mask, prefix, limits, config.seed
  )


def _row_sharding(mask: jax.Array) -> NamedSharding | None:
  """How rows are spread over a mesh, or None if they are not; unknown while a caller is traced."""
  sharding = getattr(mask, "sharding", None)
  if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
    return None
  return NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))


def _check_limits(max_lengths: jax.Array | np.ndarray, batch: int, most: int) -> None:
  if max_lengths.shape != (batch,) or not np.issubdtype(max_lengths.dtype, np.integer):
    raise ValueError(
      f"max_lengths is {max_lengths.dtype} {max_lengths.shape}: expected int32 [{batch}]"
    )
  # Reading an array on a device would wait for it, and of one that is spread over hosts it cannot.
  if isinstance(max_lengths, np.ndarray) and not ((max_lengths > 0) & (max_lengths <= most)).all():
    raise ValueError(f"max_lengths={max_lengths}: expected 1 to max_new_tokens={most}")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
  t5_config: T5Config,
  config: GenerationConfig,
  rows: NamedSharding | None,
  params,
  memory,
  mask,
  prefix,
  limits,
  seed,
):
  # Any: the type of what a method returns does not survive `apply`.
  apply: Any = functools.partial(T5(t5_config).apply, {"params": params})
  given, first = _given_tokens(prefix, t5_config.pad_id)
  before = given.shape[1] - 1  # positions ahead of the token that is continued first
  length = before + config.max_new_tokens
  cache = apply(memory, mask, first, length=length, method="init_cache")
  if before:
    # Only the cache is wanted; the logits, which nobody reads, are not computed.
    _, cache = apply(given[:, None, :-1], 0, cache, mask, method="decode_step")
  # Beams, and draws from the same row, begin alike.
  beams = max(config.num_beams, config.num_return_sequences)
  cache = cache._replace(tokens=jax.tree.map(lambda x: jnp.repeat(x, beams, 2), cache.tokens))
  cache = _spread_rows(cache, rows)
  tokens = jnp.repeat(given[:, -1:], beams, axis=1)

  def step(tokens, index, cache):
    logits, cache = apply(tokens[..., None], before + index, cache, mask, method="decode_step")
    cache = _spread_rows(cache, rows)
    # Over [B, K, V] XLA on CPU would copy the logits first.
    flat = logits.reshape(-1, t5_config.vocab_size)
    log_z = jax.nn.logsumexp(flat, axis=-1).reshape(tokens.shape)
    if config.min_new_tokens:
      barred = jnp.arange(t5_config.vocab_size) == t5_config.eos_id
      logits = jnp.where(barred & (index < config.min_new_tokens), -jnp.inf, logits)
    return logits, log_z, cache

  limits = jnp.clip(limits, 1, config.max_new_tokens)
  if config.num_beams > 1:
    result = beam_search(step, cache, tokens, limits, config, t5_config, rows)
  else:
    result = sample(step, cache, tokens, limits, config, t5_config, jax.random.key(seed))
  if config.num_return_sequences == 1:
    return GenerationResult(result.ids[:, 0], result.scores[:, 0])
  return jax.tree.map(lambda x: x[:, : config.num_return_sequences], result)


def _spread_rows(cache: DecodingCache, rows: NamedSharding | None) -> DecodingCache:
  """Spreads [L, B, …] as the rows of the batch are.

  Left alone, XLA keeps the weights where they are, and splits D over `fsdp` instead of the batch:
  then every device of that axis holds the keys and values of the same rows.
  """
  if rows is None:
    return cache
  free = PartitionSpec.UNCONSTRAINED

  def spread(x: jax.Array) -> jax.Array:
    spec = PartitionSpec(free, rows.spec[0], *[free] * (x.ndim - 2))
    return jax.lax.with_sharding_constraint(x, NamedSharding(rows.mesh, spec))

  return cache._replace(
    memory=jax.tree.map(spread, cache.memory), tokens=jax.tree.map(spread, cache.tokens)
  )


def _given_tokens(prefix: jax.Array, pad_id: int) -> tuple[jax.Array, jax.Array]:
  """Moves the padding ahead of the start token, so that all rows go on at the same position.

  T5 knows relative positions only, so this changes nothing as long as attention skips the padding.

  Args:
    prefix: int32 [B, P], padded at the end.

  Returns:
    int32 [B, 1 + P]: padding, start token, prefix; and where the start token stands, int32 [B].
  """
  width = prefix.shape[1]
  lengths = jnp.max(jnp.where(prefix != pad_id, jnp.arange(1, width + 1), 0), axis=1, initial=0)
  first = width - lengths
  started = jnp.pad(prefix, ((0, 0), (1, 0)), constant_values=pad_id)
  source = jnp.arange(width + 1) - first[:, None]
  # Position 0 is the start token, and that is the padding token too.
  return jnp.take_along_axis(started, jnp.maximum(source, 0), axis=1), first
