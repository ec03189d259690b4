"""Decoding against slow references that run the whole decoder for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models import decoding, sampling
from slm_jax.models.decoding import GenerationConfig, generate
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.t5 import T5, T5Config

CONFIG = T5Config(
  vocab_size=64,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=48,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
LENGTH = 8
RNG = np.random.default_rng(0)
MASK = np.arange(9) < np.array([[9], [4], [7], [1]])
TOKENS = np.where(MASK, RNG.integers(2, 64, (4, 9)), 0).astype(np.int32)


def init(config: T5Config, seed: int = 0) -> dict:
  boxed = jax.jit(T5(config).init)(jax.random.key(seed), TOKENS, MASK, TOKENS)
  return nn.unbox(boxed)["params"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
  params = init(CONFIG)
  # Larger outputs and biases: otherwise tokens are about equally likely and positions hardly count.
  params["decoder"]["logits_dense"]["kernel"] *= 3.0
  params["decoder"]["relpos_bias"]["rel_embedding"] *= 5.0
  return LanguageModel(CONFIG, params)


@pytest.fixture(scope="module")
def memory(lm) -> jax.Array:
  return lm.encode(tokens=TOKENS, mask=MASK)


def shift_right(ids: np.ndarray) -> np.ndarray:
  return np.pad(np.asarray(ids), ((0, 0), (1, 0)))[:, :-1]


def teacher_forced_scores(lm, memory, ids) -> np.ndarray:
  """Log-probability of the ids up to and with EOS, divided by their number."""
  logits = np.asarray(lm.logits(memory, MASK, shift_right(ids)))
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  chosen = np.take_along_axis(log_probs, np.asarray(ids)[..., None], axis=-1)[..., 0]
  real = np.cumsum(np.asarray(ids) == CONFIG.eos_id, axis=1) - (np.asarray(ids) == 1) == 0
  return (chosen * real).sum(1) / real.sum(1)


@pytest.mark.parametrize("per_layer", [False, True])
def test_cached_steps_equal_the_whole_decoder(lm, memory, per_layer):
  config = dataclasses.replace(CONFIG, per_layer_relpos=per_layer)
  params = lm.params
  if per_layer:
    params = init(config)
  t5, variables = T5(config), {"params": params}
  whole = LanguageModel(config, params)
  tokens = RNG.integers(2, 64, (2, 4, LENGTH))  # two beams with nothing in common

  cache = t5.apply(variables, memory, MASK, np.zeros(4), length=LENGTH, method="init_cache")
  cache = cache._replace(tokens=jax.tree.map(lambda x: jnp.repeat(x, 2, axis=2), cache.tokens))
  step = jax.jit(lambda *inputs: t5.apply(variables, *inputs, MASK, method="decode_step"))
  expected = [whole.logits(memory, MASK, beam) for beam in tokens]
  index = 0
  for size in (3, 1, 1, 3):
    new = tokens[:, :, index : index + size].swapaxes(0, 1)
    logits, cache = step(new, jnp.int32(index), cache)
    index += size
    for beam in range(2):
      np.testing.assert_allclose(logits[:, beam], expected[beam][:, index - 1], atol=2e-5)


def test_greedy_takes_the_likeliest_token_each_time(lm, memory):
  ids = np.zeros((4, LENGTH), np.int32)
  done = np.zeros(4, bool)
  for index in range(LENGTH):
    best = np.asarray(lm.logits(memory, MASK, shift_right(ids)))[:, index].argmax(-1)
    ids[:, index] = np.where(done, 0, best)
    done |= ids[:, index] == CONFIG.eos_id
  assert done.any() and not done.all(), "the weights should end some rows early"

  result = lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH)
  np.testing.assert_array_equal(result.ids, ids)
  np.testing.assert_allclose(result.scores, teacher_forced_scores(lm, memory, ids), atol=1e-5)
  one_beam = lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH, num_beams=1)
  np.testing.assert_array_equal(one_beam.ids, ids)


def test_a_wide_beam_finds_the_best_of_all_sequences():
  config = dataclasses.replace(CONFIG, vocab_size=8)
  params = init(config, seed=3)
  lm = LanguageModel(config, params)
  memory = lm.encode(tokens=TOKENS % 8, mask=MASK)
  sequences = np.array([[a, b] for a in range(8) for b in range(8) if a != config.eos_id or b == 0])
  scores = []
  for ids in sequences:
    log_probs = jax.nn.log_softmax(lm.logits(memory, MASK, np.tile([0, ids[0]], (4, 1))))
    length = 1 if ids[0] == config.eos_id else 2
    total = sum(log_probs[:, t, ids[t]] for t in range(length))
    scores.append(np.asarray(total) / length**0.5)
  best = np.argmax(scores, axis=0)

  beams = GenerationConfig(max_new_tokens=2, num_beams=4, length_penalty=0.5)
  result = generate(T5(config), params, memory, jnp.asarray(MASK), beams)
  np.testing.assert_array_equal(result.ids, sequences[best])
  np.testing.assert_allclose(result.scores, np.max(scores, axis=0), atol=1e-5)


def test_beam_scores_are_the_log_probabilities_of_the_ids(lm, memory):
  result = lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH, num_beams=4)
  greedy = lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH)
  np.testing.assert_allclose(
    result.scores, teacher_forced_scores(lm, memory, result.ids), atol=1e-5
  )
  assert (np.asarray(result.ids) != np.asarray(greedy.ids)).any()
  assert np.mean(result.scores) > np.mean(greedy.scores)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_and_padding_do_not_touch_each_other(lm, memory, num_beams):
  config = GenerationConfig(max_new_tokens=LENGTH, num_beams=num_beams)
  together = generate(T5(CONFIG), lm.params, memory, jnp.asarray(MASK), config)
  noisy = jnp.where(MASK[..., None], memory, jnp.nan)
  alone = [
    generate(T5(CONFIG), lm.params, noisy[row : row + 1], jnp.asarray(MASK[row : row + 1]), config)
    for row in range(4)
  ]
  np.testing.assert_array_equal(together.ids, np.concatenate([r.ids for r in alone]))


def test_sampling_follows_the_seed_and_compiles_once(lm, memory):
  decoding._generate.clear_cache()

  def sample(seed: int, **options) -> np.ndarray:
    config = GenerationConfig(max_new_tokens=LENGTH, temperature=1.0, seed=seed, **options)
    return np.asarray(generate(T5(CONFIG), lm.params, memory, jnp.asarray(MASK), config).ids)

  first = sample(0)
  np.testing.assert_array_equal(first, sample(0))
  assert (first != sample(1)).any()
  assert decoding._generate._cache_size() == 1

  greedy = lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH).ids
  np.testing.assert_array_equal(sample(0, top_k=1), greedy)
  np.testing.assert_array_equal(sample(0, top_p=1e-6), greedy)


def test_truncation_keeps_the_likeliest_tokens():
  probabilities = np.array([[0.1, 0.4, 0.05, 0.3, 0.15]])
  logits = jnp.log(probabilities)

  def kept(**options) -> list[int]:
    config = GenerationConfig(temperature=1.0, **options)
    return np.flatnonzero(np.isfinite(sampling.truncate(logits, config)[0])).tolist()

  assert kept() == [0, 1, 2, 3, 4]
  assert kept(top_k=2) == [1, 3]
  assert kept(top_p=0.39) == [1]
  assert kept(top_p=0.69) == [1, 3]
  assert kept(top_p=0.71) == [1, 3, 4]
  # The nucleus is measured among the tokens that top-k left: 0.4 / 0.7 < 0.6.
  assert kept(top_k=2, top_p=0.55) == [1]
  cooler = sampling.truncate(logits, GenerationConfig(temperature=0.5))
  np.testing.assert_allclose(cooler, 2 * logits, rtol=1e-6)


@pytest.mark.parametrize(
  ("field", "options"),
  [
    ("max_new_tokens", {"max_new_tokens": 0}),
    ("num_beams", {"num_beams": 0}),
    ("num_beams", {"num_beams": 2, "temperature": 1.0}),
    ("temperature", {"temperature": -1.0}),
    ("top_k", {"top_k": -1}),
    ("top_p", {"top_p": 0.0}),
  ],
)
def test_an_impossible_request_is_refused_by_name(field, options):
  with pytest.raises(ValueError, match=field):
    GenerationConfig(**options)


def test_the_front_refuses_ambiguous_inputs(lm, memory):
  with pytest.raises(ValueError, match="exactly one"):
    lm.encode(tokens=TOKENS, embeddings=memory, mask=MASK)
  with pytest.raises(ValueError, match="mask="):
    lm.encode(embeddings=memory)
  with pytest.raises(ValueError, match="bool"):
    lm.encode(tokens=TOKENS, mask=MASK.astype(np.int32))
  with pytest.raises(ValueError, match="num_beams=33"):
    lm.generate(tokens=TOKENS, num_beams=33)
