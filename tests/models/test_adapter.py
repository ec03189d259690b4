"""The adapter: size, padding, positions, loudness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.adapter import (
  Adapter,
  AdapterConfig,
  expected_embedding,
  rotate,
  scale_output_norm,
)
from slm_jax.models.length_reduction import LengthReductionConfig

CONFIG = AdapterConfig(
  num_layers=2,
  num_heads=2,
  head_dim=8,
  mlp_dim=12,
  length_reduction=LengthReductionConfig(kind="stack", factor=2),
)


def run(config=CONFIG, batch=2, frames=8, width=6, output=16):
  x = jax.random.normal(jax.random.key(1), (batch, frames, width))
  mask = jnp.arange(frames) < jnp.array([[frames], [5]])
  module = Adapter(config, output_dim=output)
  params = nn.unbox(module.init(jax.random.key(0), x, mask))
  return module, params, x, mask


def test_preset_of_the_paper_has_156_million_parameters():
  # arXiv:2310.00230 gives 156 M and "as few as two layers"; the other numbers are a guess that meets the total.
  config = AdapterConfig(
    num_layers=2,
    num_heads=64,
    head_dim=64,
    mlp_dim=640,
    length_reduction=LengthReductionConfig(kind="drop", factor=4),
  )
  shapes = jax.eval_shape(
    Adapter(config, output_dim=4096).init,
    jax.random.key(0),
    jnp.zeros((1, 8, 1536)),
    jnp.ones((1, 8), bool),
  )
  total = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(shapes)))
  assert 156.0e6 < total < 156.4e6


def test_padding_never_changes_a_result():
  module, params, x, mask = run()
  noise = jnp.where(mask[..., None], x, 1e3)
  out, out_mask = module.apply(params, x, mask)
  loud, _ = module.apply(params, noise, mask)
  np.testing.assert_allclose(out, loud, atol=1e-5)
  np.testing.assert_array_equal(out_mask, [[True] * 4, [True] * 3 + [False]])
  assert np.all(np.asarray(out)[~np.asarray(out_mask)] == 0)


def test_a_row_of_padding_gives_zeros_not_nan():
  module, params, x, mask = run()
  out, out_mask = module.apply(params, x, jnp.zeros_like(mask))
  assert not out_mask.any() and np.all(np.asarray(out) == 0)


def test_rotation_depends_on_the_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def score(i, j):
    return jnp.sum(rotate(q, jnp.array([i])) * rotate(k, jnp.array([j])))

  np.testing.assert_allclose(score(3, 1), score(9, 7), rtol=1e-5)
  assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_order_of_frames_matters():
  module, params, x, mask = run()
  full = jnp.ones_like(mask)
  out, _ = module.apply(params, x, full)
  swapped, _ = module.apply(params, x[:, ::-1], full)
  assert not np.allclose(out, swapped[:, ::-1], atol=1e-2)


def test_output_starts_as_loud_as_the_token_embedding():
  module, params, x, mask = run()
  embedding = 7.0 * jax.random.normal(jax.random.key(2), (50, 16))
  params = {"params": scale_output_norm(params["params"], embedding)}
  out, out_mask = module.apply(params, x, mask)
  rms = np.sqrt(np.mean(np.square(np.asarray(out)[np.asarray(out_mask)])))
  np.testing.assert_allclose(rms, np.sqrt(np.mean(np.square(embedding))), rtol=1e-3)


@pytest.mark.parametrize(
  "change",
  [
    {"num_layers": 1},
    {"num_heads": 3},
    {"head_dim": 4},
    {"mlp_dim": 20},
    {"length_reduction": LengthReductionConfig(kind="mean", factor=2)},
  ],
)
def test_every_field_changes_the_built_module(change):
  def shapes(config):
    module, params, *_ = run(config)
    return jax.tree.map(lambda x: x.shape, params)

  assert shapes(CONFIG) != shapes(dataclasses.replace(CONFIG, **change))


def test_dropout_acts_in_training_only():
  module, params, x, mask = run(dataclasses.replace(CONFIG, dropout_rate=0.5))
  still, _ = module.apply(params, x, mask)
  again, _ = module.apply(params, x, mask)
  np.testing.assert_array_equal(still, again)
  trained, _ = module.apply(params, x, mask, train=True, rngs={"dropout": jax.random.key(0)})
  assert not np.allclose(still, trained)


def ctc_embedding_run(kind="drop", factor=1, **change):
  reduction = LengthReductionConfig(kind=kind, factor=factor)
  config = dataclasses.replace(CONFIG, ctc_embeddings=True, length_reduction=reduction, **change)
  frames, table = (
    jax.random.normal(jax.random.key(k), s) for k, s in ((1, (2, 6, 5)), (2, (9, 16)))
  )
  tokens = jnp.array([[3, 7, 1, 8, 2, 4], [5, 5, 6, 3, 3, 1]])
  inputs = frames, jnp.ones((2, 6), bool), 1e3 * jax.nn.one_hot(tokens, 9), table
  module = Adapter(config, output_dim=16)
  return module, nn.unbox(module.init(jax.random.key(0), *inputs)), inputs, tokens


def normalised(x):
  return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize(("kind", "factor"), [("drop", 1), ("mean", 2), ("stack", 2), ("stack", 3)])
def test_a_fresh_adapter_passes_on_what_ctc_is_certain_of(kind, factor):
  module, params, inputs, tokens = ctc_embedding_run(kind, factor)
  out, _ = module.apply(params, *inputs)
  read = np.asarray(inputs[-1])[np.asarray(tokens)].reshape(2, 6 // factor, factor, 16).mean(axis=2)
  np.testing.assert_allclose(out, normalised(read), atol=1e-5)


def test_a_blank_frame_brings_no_embedding():
  table = jax.random.normal(jax.random.key(0), (9, 16))
  logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25] + [1e-9] * 6, [1.0] + [1e-9] * 8]]))
  expected = np.asarray(expected_embedding(logits, table))
  np.testing.assert_allclose(expected[0, 0], 0.25 * (table[1] + table[2]), atol=1e-5)
  np.testing.assert_allclose(expected[0, 1], 0, atol=1e-5)


def test_every_parameter_but_those_behind_a_zero_learns_from_the_first_step():
  module, params, inputs, _ = ctc_embedding_run()
  weight = jax.random.normal(jax.random.key(3), (16,))
  gradient = jax.grad(lambda p: (module.apply(p, *inputs)[0] @ weight).sum())(params)["params"]
  for path in (("projection", "kernel"), ("layer_0", "wo", "kernel"), ("layer_0", "out", "kernel")):
    leaf = gradient
    for name in path:
      leaf = leaf[name]
    assert np.any(np.asarray(leaf) != 0), path


def test_ctc_embeddings_without_a_ctc_head_are_refused():
  module, params, inputs, _ = ctc_embedding_run()
  with pytest.raises(ValueError, match="ctc_embeddings=True"):
    module.apply(params, *inputs[:2])


def test_odd_head_width_is_refused():
  with pytest.raises(ValueError, match="head_dim=7"):
    dataclasses.replace(CONFIG, head_dim=7)
  with pytest.raises(ValueError, match="num_heads=0"):
    dataclasses.replace(CONFIG, num_heads=0)
