"""N-best, forced prefixes, limits and early stopping, against Hugging Face Transformers on torch."""

import jax
import numpy as np
import pytest
import torch
import transformers

from slm_jax.interop import load_language_model
from slm_jax.models import decoding
from slm_jax.models.decoding import GenerationConfig, generate
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.t5 import T5

ROWS, LENGTH = 8, 10
RNG = np.random.default_rng(7)
MASK = np.arange(12) < RNG.integers(2, 13, (ROWS, 1))
TOKENS = np.where(MASK, RNG.integers(2, 96, (ROWS, 12)), 0).astype(np.int32)
# Two rows without a prefix; an EOS and a padding token inside one.
PREFIX_LENGTHS = np.array([0, 1, 5, 3, 4, 0, 2, 5])
PREFIX = np.where(np.arange(5) < PREFIX_LENGTHS[:, None], RNG.integers(2, 96, (ROWS, 5)), 0)
PREFIX[2, 1:3] = 1, 0
LIMITS = np.array([10, 3, 1, 7, 10, 2, 5, 9], np.int32)


@pytest.fixture(scope="module")
def reference() -> transformers.PreTrainedModel:
  """mT5 with random weights, large enough that tokens differ in likelihood; EOS is a likely one."""
  torch.manual_seed(1)
  config = transformers.MT5Config(
    vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0
  )
  model = transformers.MT5ForConditionalGeneration(config).eval()
  with torch.no_grad():
    head = 0.5 * torch.randn_like(model.shared.weight)
    head[1] *= 2.0
    model.lm_head.weight = torch.nn.Parameter(head)
    for name, parameter in model.named_parameters():
      if "relative_attention_bias" in name:
        parameter.normal_(std=2.0)
      elif name == "shared.weight":
        parameter.mul_(0.3)
      elif "layer_norm" not in name and name != "lm_head.weight":
        parameter.mul_(1.5)
  return model


@pytest.fixture(scope="module")
def lm(reference, tmp_path_factory) -> LanguageModel:
  folder = tmp_path_factory.mktemp("mt5")
  reference.save_pretrained(folder)
  return load_language_model(folder)


def torch_generate(model, rows=slice(None), prefix=None, **options):
  """(new ids [B * R, LENGTH], scores [B * R] or None for greedy) of Hugging Face Transformers."""
  tokens, mask = TOKENS[rows], MASK[rows]
  start = np.zeros((len(tokens), 1), np.int64)
  given = start if prefix is None else np.concatenate([start, prefix], axis=1)
  with torch.no_grad():
    found = model.generate(
      input_ids=torch.tensor(tokens, dtype=torch.int64),
      attention_mask=torch.tensor(mask, dtype=torch.int64),
      decoder_input_ids=torch.tensor(given),
      do_sample=False,
      return_dict_in_generate=True,
      output_scores=True,
      **options,
    )
  ids = found.sequences.numpy()[:, given.shape[1] :]
  ids = np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))
  # Beam search there fills up with EOS when the padding token is 0.
  ids = np.where(np.cumsum(ids == 1, axis=1) - (ids == 1) > 0, 0, ids)
  return ids, getattr(found, "sequences_scores", None)


@pytest.mark.parametrize("num_return_sequences", [2, 4])
def test_n_best_equals_torch(reference, lm, num_return_sequences):
  options = {"num_beams": 4, "num_return_sequences": num_return_sequences}
  ids, scores = torch_generate(reference, max_new_tokens=LENGTH, **options)
  result = lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH, **options)
  assert result.ids.shape == (ROWS, num_return_sequences, LENGTH)
  np.testing.assert_array_equal(result.ids.reshape(-1, LENGTH), ids)
  np.testing.assert_allclose(result.scores.reshape(-1), scores, rtol=1e-4)


@pytest.mark.parametrize(
  ("early_stopping", "length_penalty", "differs"),
  [(True, 2.0, True), (True, 0.0, True), ("never", 2.0, True), ("never", -1.0, False)],
)
def test_early_stopping_equals_torch(reference, lm, early_stopping, length_penalty, differs):
  options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": length_penalty}
  options["max_new_tokens"] = LENGTH
  ids, scores = torch_generate(reference, early_stopping=early_stopping, **options)
  result = lm.generate(tokens=TOKENS, mask=MASK, early_stopping=early_stopping, **options)
  np.testing.assert_array_equal(result.ids.reshape(-1, LENGTH), ids)
  np.testing.assert_allclose(result.scores.reshape(-1), scores, rtol=1e-4)
  usual = lm.generate(tokens=TOKENS, mask=MASK, **options)
  assert (np.asarray(result.ids) != np.asarray(usual.ids)).any() == differs


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_prefix_equals_torch(reference, lm, num_beams):
  prefix = RNG.integers(2, 96, (ROWS, 3))
  options = {"max_new_tokens": LENGTH, "num_beams": num_beams}
  ids, scores = torch_generate(reference, prefix=prefix, **options)
  result = lm.generate(tokens=TOKENS, mask=MASK, prefix=prefix, **options)
  np.testing.assert_array_equal(result.ids, ids)
  if num_beams > 1:
    np.testing.assert_allclose(result.scores, scores, rtol=1e-4)
  unforced = lm.generate(tokens=TOKENS, mask=MASK, **options)
  assert (np.asarray(result.ids) != np.asarray(unforced.ids)).any()


@pytest.mark.parametrize(
  "options",
  [{"num_beams": 1}, {"num_beams": 4}, {"num_beams": 3, "early_stopping": "never"}],
  ids=["greedy", "beams", "never"],
)
def test_a_prefix_and_limit_of_its_own_equal_the_row_alone(reference, lm, options):
  result = lm.generate(
    tokens=TOKENS, mask=MASK, prefix=PREFIX, max_lengths=LIMITS, max_new_tokens=LENGTH, **options
  )
  for row, (length, limit) in enumerate(zip(PREFIX_LENGTHS, LIMITS, strict=True)):
    own = slice(row, row + 1)
    ids, scores = torch_generate(
      reference, own, PREFIX[own, :length], max_new_tokens=limit, **options
    )
    np.testing.assert_array_equal(result.ids[row], ids[0], err_msg=f"row {row}")
    if scores is not None:
      np.testing.assert_allclose(result.scores[row], scores[0], rtol=1e-4)


def test_a_row_of_nan_ends_and_leaves_the_others_alone(lm):
  options = {"max_new_tokens": LENGTH, "num_beams": 4, "max_lengths": LIMITS}
  expected = lm.generate(tokens=TOKENS, mask=MASK, prefix=PREFIX, **options)
  prefix = PREFIX.copy()
  prefix[3, 0] = 96  # outside the vocabulary
  result = lm.generate(tokens=TOKENS, mask=MASK, prefix=prefix, **options)
  others = np.arange(ROWS) != 3
  np.testing.assert_array_equal(result.ids[others], expected.ids[others])


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_minimal_length_equals_torch(reference, lm, num_beams):
  options = {"max_new_tokens": LENGTH, "min_new_tokens": 6, "num_beams": num_beams}
  ids, scores = torch_generate(reference, **options)
  result = lm.generate(tokens=TOKENS, mask=MASK, **options)
  np.testing.assert_array_equal(result.ids, ids)
  if num_beams > 1:
    np.testing.assert_allclose(result.scores, scores, rtol=1e-4)
  lengths = (np.asarray(result.ids) != 0).sum(1)
  assert lengths.min() >= 6 and (lengths < LENGTH).any()


def test_draws_are_independent_and_best_first(lm):
  draws = 500
  memory = lm.encode(tokens=TOKENS, mask=MASK)
  config = GenerationConfig(max_new_tokens=2, temperature=1.0, num_return_sequences=draws, seed=3)
  result = generate(T5(lm.config), lm.params, memory, MASK, config)
  assert result.ids.shape == (ROWS, draws, 2) and result.scores.shape == (ROWS, draws)
  assert (np.diff(result.scores, axis=1) <= 0).all()

  probabilities = jax.nn.softmax(lm.logits(memory, MASK, np.zeros((ROWS, 1), np.int32))[:, 0])
  first = np.asarray(result.ids)[:, :, 0]
  shares = (first[..., None] == np.arange(96)).mean(1)
  # The expected distance of 500 draws from their distribution is about 0.1.
  assert np.abs(shares - probabilities).sum(1).max() < 0.5
  assert (first[0, :20] != first[1, :20]).any()

  row = np.asarray(result.ids)[0]
  ended = (row[:, 0] == 1).nonzero()[0][0]
  np.testing.assert_allclose(result.scores[0, ended], np.log(probabilities[0, 1]), rtol=1e-4)
  greedy = generate(T5(lm.config), lm.params, memory, MASK, GenerationConfig(max_new_tokens=2))
  likeliest = GenerationConfig(
    max_new_tokens=2, temperature=1.0, top_k=1, num_return_sequences=draws
  )
  repeated = generate(T5(lm.config), lm.params, memory, MASK, likeliest)
  np.testing.assert_array_equal(repeated.ids, np.repeat(greedy.ids[:, None], draws, axis=1))


@pytest.mark.parametrize(
  "options", [{"temperature": 1.0}, {"num_beams": 2}], ids=["draws", "beams"]
)
def test_values_change_without_compiling_again(lm, options):
  memory = lm.encode(tokens=TOKENS, mask=MASK)
  decoding._generate.clear_cache()
  for seed, prefix, limits in (
    (0, PREFIX, LIMITS),
    (1, PREFIX[::-1], LIMITS[::-1]),
    (2, np.zeros_like(PREFIX), None),
  ):
    config = GenerationConfig(max_new_tokens=LENGTH, seed=seed, **options)
    generate(T5(lm.config), lm.params, memory, MASK, config, prefix=prefix, max_lengths=limits)
  assert decoding._generate._cache_size() == 1


@pytest.mark.parametrize(
  ("field", "options"),
  [
    ("num_return_sequences", {"num_return_sequences": 0}),
    ("num_return_sequences=2", {"num_return_sequences": 2}),
    ("num_return_sequences=3", {"num_return_sequences": 3, "num_beams": 2}),
    ("early_stopping", {"early_stopping": "always"}),
    ("min_new_tokens", {"min_new_tokens": -1}),
    ("min_new_tokens", {"min_new_tokens": 3, "max_new_tokens": 2}),
  ],
)
def test_an_impossible_request_is_refused_by_name(field, options):
  with pytest.raises(ValueError, match=field):
    GenerationConfig(**options)


@pytest.mark.parametrize(
  ("message", "inputs"),
  [
    (r"prefix is int64 \(7, 2\)", {"prefix": np.zeros((7, 2), np.int64)}),
    ("prefix is float32", {"prefix": np.zeros((ROWS, 2), np.float32)}),
    (r"max_lengths is int64 \(7,\)", {"max_lengths": np.ones(7, np.int64)}),
    ("max_lengths=.* 1 to max_new_tokens=10", {"max_lengths": 10 * np.ones(ROWS, int) + 1}),
    ("max_lengths=.* 1 to max_new_tokens=10", {"max_lengths": np.zeros(ROWS, int)}),
  ],
)
def test_inputs_that_do_not_fit_are_refused(lm, message, inputs):
  with pytest.raises(ValueError, match=message):
    lm.generate(tokens=TOKENS, mask=MASK, max_new_tokens=LENGTH, **inputs)
