"""Decoding in instalments: the tokens of decoding at once, each row by its own options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.decoding import generate
from slm_jax.models.generation_config import GenerationConfig
from slm_jax.models.incremental_decoding import RowOptions, advance, start
from slm_jax.models.t5 import T5, T5Config

CONFIG = T5Config(
  vocab_size=40,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=2,
)
LENGTH = 20


@pytest.fixture(scope="module")
def given():
  """(parameters, memory [6, 5, 16], mask)."""
  tokens = jnp.ones((1, 2), jnp.int32)
  params = nn.unbox(
    jax.jit(T5(CONFIG).init)(jax.random.key(0), tokens, tokens > 0, tokens)["params"]
  )
  memory = jax.random.normal(jax.random.key(1), (6, 5, 16)) * 4
  return params, memory, jnp.arange(5) < jnp.array([5, 4, 3, 5, 1, 2])[:, None]


def options(limits=LENGTH, temperatures=0.0, seeds=0) -> RowOptions:
  kinds = (jnp.int32, jnp.float32, jnp.uint32)
  values = (limits, temperatures, seeds)
  return RowOptions(
    *(jnp.broadcast_to(jnp.asarray(v, k), 6) for v, k in zip(values, kinds, strict=True))
  )


def decode(given, asked: RowOptions, count: int):
  """(ids, how many tokens were there after each call)."""
  params, memory, mask = given
  state, calls = start(CONFIG, LENGTH, params, memory, mask), []
  while not bool(state.done.all()):
    state = advance(CONFIG, count, params, state, mask, asked)
    calls.append(int(state.index))
  return np.asarray(state.ids), calls


@pytest.mark.parametrize("count", [1, 7, 50])
def test_greedy_tokens_are_those_of_decoding_at_once(given, count):
  expected = generate(T5(CONFIG), *given, GenerationConfig(max_new_tokens=LENGTH)).ids
  ids, calls = decode(given, options(), count)
  np.testing.assert_array_equal(ids, expected)
  assert calls == sorted(set(calls)) and calls[-1] <= LENGTH
  assert all(b - a <= count for a, b in zip([0, *calls], calls, strict=False))


def test_rows_end_at_their_own_limits(given):
  limits = [0, 1, 5, LENGTH, 3, 2]
  free, _ = decode(given, options(), 8)
  ids, _ = decode(given, options(limits), 8)
  for row, whole, limit in zip(ids, free, limits, strict=True):
    np.testing.assert_array_equal(row[:limit], whole[:limit])
    assert not row[limit:].any()


def test_draws_depend_on_a_rows_own_seed_alone(given):
  warm = [2.0, 0.0, 2.0, 2.0, 0.0, 2.0]
  first, _ = decode(given, options(temperatures=warm, seeds=[1, 2, 3, 4, 5, 6]), 8)
  again, _ = decode(given, options(temperatures=warm, seeds=[1, 9, 9, 4, 9, 9]), 3)
  greedy, _ = decode(given, options(), 8)
  for row in (0, 3):
    np.testing.assert_array_equal(first[row], again[row])
  for row in (1, 4):
    np.testing.assert_array_equal(first[row], greedy[row])
  assert (first[2] != again[2]).any() and (first[0] != greedy[0]).any()


def test_draws_are_of_the_models_distribution(given):
  params, memory, mask = given
  memory, mask = jnp.repeat(memory[:1], 6, 0), jnp.repeat(mask[:1], 6, 0)
  bos = jnp.zeros((1, 1), jnp.int32)
  hidden = T5(CONFIG).apply({"params": params}, memory[:1], mask[:1], bos, method="decode")
  logits = T5(CONFIG).apply({"params": params}, hidden, method="logits")[0, 0]
  expected = np.asarray(jax.nn.softmax(logits / 3.0))
  counts = np.zeros(CONFIG.vocab_size)
  for first in range(0, 3_000, 6):
    seeds = jnp.arange(first, first + 6)
    state = start(CONFIG, LENGTH, params, memory, mask)
    state = advance(CONFIG, 1, params, state, mask, options(temperatures=3.0, seeds=seeds))
    np.add.at(counts, np.asarray(state.tokens), 1)
  # Standard deviations of shares of 3,000 draws are at most 0.009.
  np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.04)
