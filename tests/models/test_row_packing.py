"""Examples that share a row of the LM: the same numbers as each in a row of its own."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from slm_jax.batch import Batch, LMRows
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.row_packing import pack_rows
from slm_jax.models.slm import SLM, SLMConfig, decoder_targets
from slm_jax.models.t5 import T5Config
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.sharding import BATCH_SPEC
from slm_jax.training.step import init_state, make_train_step


def test_rows_hold_their_examples_one_after_the_other():
  rng = np.random.default_rng(0)
  counts = np.array([3, 0, 5, 1, 2, 4])
  x = rng.normal(size=(6, 5, 2)).astype(np.float32)
  packed, segments = pack_rows(jnp.asarray(x), jnp.arange(5) < counts[:, None], 3, 9)
  for row in range(2):
    examples = range(3 * row, 3 * row + 3)
    expected = np.concatenate([x[i, : counts[i]] for i in examples])
    ids = np.repeat([1, 2, 3], counts[3 * row : 3 * row + 3])
    np.testing.assert_array_equal(packed[row, : len(expected)], expected)
    np.testing.assert_array_equal(segments[row], np.pad(ids, (0, 9 - len(ids))))
    assert not packed[row, len(expected) :].any()


def test_a_row_that_does_not_hold_its_examples_is_nan():
  packed, _ = pack_rows(jnp.ones((4, 3, 1)), jnp.ones((4, 3), bool), 2, 5)
  assert np.isnan(packed).all()
  mask = jnp.arange(3) < jnp.array([3, 3, 3, 2])[:, None]
  packed, _ = pack_rows(jnp.ones((4, 3, 1)), mask, 2, 5)
  assert np.isnan(packed[0]).all() and not np.isnan(packed[1]).any()


@pytest.fixture(scope="module")
def model_and_params():
  encoder = ConformerConfig(
    num_layers=2, model_dim=16, num_heads=2, subsampling_channels=(4, 4), vocab_size=64
  )
  lm = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
  )
  adapter = AdapterConfig(
    num_layers=1,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    length_reduction=LengthReductionConfig(kind="stack", factor=2),
  )
  config = SLMConfig(speech_encoder=encoder.frozen(), adapter=adapter, language_model=lm)
  objective = SLMObjective(SLM(config))
  return objective, nn.unbox(jax.jit(objective.init)(jax.random.key(0), uneven_batch()))


def uneven_batch() -> Batch:
  rng = np.random.default_rng(1)
  batch = Batch.fake(
    batch_size=8, num_samples=8_000, prompt_length=6, target_length=7, vocab_size=64
  )
  lengths = np.array([8_000, 1_600, 4_000, 6_000, 0, 8_000, 2_500, 5_000], np.int32)
  prompt_lengths, target_lengths = (rng.integers(1, n + 1, 8) for n in (6, 7))
  # A padding row, as where too few examples fit.
  prompt_lengths[4] = target_lengths[4] = 0
  real = np.arange(7) < target_lengths[:, None]
  targets = np.where(real, rng.integers(3, 64, (8, 7)), 0).astype(np.int32)
  return dataclasses.replace(
    batch,
    audio_lengths=lengths,
    encoder_input_tokens=np.where(
      np.arange(6) < prompt_lengths[:, None], batch.encoder_input_tokens, 0
    ),
    decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    decoder_target_tokens=targets,
    decoder_loss_weights=real.astype(np.float32),
  )


def loss_and_gradient(objective, params, batch):
  grad = jax.value_and_grad(
    lambda adapter: objective.loss({**params, "adapter": adapter}, batch, jax.random.key(0))[0]
  )
  return jax.jit(grad)(params["adapter"])


@pytest.fixture(scope="module")
def rows_of_their_own(model_and_params):
  return loss_and_gradient(*model_and_params, uneven_batch())


@pytest.mark.parametrize("examples", [2, 8])
def test_loss_and_gradient_are_those_of_rows_of_their_own(
  model_and_params, rows_of_their_own, examples
):
  rows = LMRows(examples, 40 * examples, 7 * examples - 1)
  packed = dataclasses.replace(uneven_batch(), lm_rows=rows)
  loss, gradient = loss_and_gradient(*model_and_params, packed)
  expected, expected_gradient = rows_of_their_own
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * (1 + np.abs(b).max())),
    gradient,
    expected_gradient,
  )


def test_logits_are_those_of_rows_of_their_own(model_and_params):
  objective, params = model_and_params
  batch = uneven_batch()
  packed = dataclasses.replace(batch, lm_rows=LMRows(4, 100, 28))
  apply = jax.jit(lambda batch: objective.model.apply({"params": params}, batch))
  expected = np.asarray(apply(batch))[batch.decoder_loss_weights > 0]
  targets, weights = decoder_targets(packed)
  np.testing.assert_allclose(np.asarray(apply(packed))[weights > 0], expected, atol=1e-5)
  np.testing.assert_array_equal(
    np.asarray(targets)[weights > 0], batch.decoder_target_tokens[batch.decoder_loss_weights > 0]
  )


class PairwiseProducts:
  """An objective in which it matters who shares a row."""

  def loss(self, params, batch, rng, *, train=True):
    pairs = batch.decoder_loss_weights[:, 0].reshape(-1, batch.lm_rows.examples)
    loss = params["scale"] * pairs.prod(axis=1).sum()
    return loss, {"loss": loss, "weight": jnp.ones(())}


def test_microbatches_keep_together_what_shares_a_row():
  weights = np.arange(1, 9, dtype=np.float32)[:, None]
  batch = Batch(decoder_loss_weights=jnp.asarray(weights), lm_rows=LMRows(2, 4, 4))
  state = init_state({"scale": jnp.ones(())}, optax.sgd(1.0), 0)
  for count in (1, 2, 4):
    step = make_train_step(PairwiseProducts(), optax.sgd(1.0), count)  # pyright: ignore
    loss = step(state, {}, batch)[1]["loss"] * count  # each microbatch has a weight of 1
    assert loss == 1 * 2 + 3 * 4 + 5 * 6 + 7 * 8


def test_rows_stay_on_their_devices(model_and_params):
  objective, params = model_and_params
  mesh = Mesh(np.array(jax.devices()[:2]).reshape(2, 1, 1), ("data", "fsdp", "tensor"))
  packed = dataclasses.replace(uneven_batch(), lm_rows=LMRows(4, 100, 28))
  collectives = []
  for batch in (uneven_batch(), packed):
    with jax.set_mesh(mesh):
      placed = jax.device_put(batch, NamedSharding(mesh, BATCH_SPEC))
      loss = jax.jit(lambda batch: objective.loss(params, batch, jax.random.key(0))[0])
      text = loss.lower(placed).compile().as_text()
    collectives.append(
      [len(re.findall(rf"= .* {kind}\(", text)) for kind in ("all-gather", "all-to-all")]
    )
  assert collectives[0] == collectives[1]
