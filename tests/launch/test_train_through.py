"""The step through a frozen LM: what it costs in memory, alone and spread over a slice."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.launch.absent_slice import slice_devices
from slm_jax.launch.train_through import (
  LanguageBatch,
  TrainThroughShape,
  abstract_inputs,
  chip_memory,
  lower_train_through,
  train_through,
)
from slm_jax.models.t5 import T5Config
from slm_jax.training.sharding import MeshConfig, make_mesh

# Wide, and run on few positions: weights outweigh activations as they do in a large LM. No two sizes
# are alike, so that a shape tells what an array is.
WIDE = T5Config(
  vocab_size=640,
  emb_dim=256,
  num_heads=6,
  head_dim=32,
  mlp_dim=512,
  num_encoder_layers=5,
  num_decoder_layers=5,
  remat="full",
)
SHORT = TrainThroughShape(
  batch_size=2, source_length=10, target_length=6, loss_chunk=3, weight_dtype="float32"
)
PRODUCT = re.compile(r"= \w+\[([\d,]+)\]\S* (?:dot|convolution|custom-call)\(")


def products(text: str) -> set[tuple[int, ...]]:
  """Shapes of all matrix products of a compiled program, without axes of size 1."""
  shapes = (tuple(map(int, found.split(","))) for found in PRODUCT.findall(text))
  return {tuple(size for size in shape if size > 1) for shape in shapes}


@pytest.fixture(scope="module")
def one_device():
  return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def gradient_shapes(one_device) -> set[tuple[int, ...]]:
  """Shapes that gradients of the weights would have, of one layer or of all, also transposed."""
  _, params, _ = abstract_inputs(WIDE, SHORT, one_device)
  shapes = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
  shapes |= {shape[1:] for shape in shapes if len(shape) == 3}
  return shapes | {(*shape[:-2], shape[-1], shape[-2]) for shape in shapes}


def weight_bytes(mesh) -> int:
  _, params, _ = abstract_inputs(WIDE, SHORT, mesh)
  return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_frozen_weights_get_no_gradient_buffers(one_device, gradient_shapes):
  compiled = lower_train_through(WIDE, SHORT, one_device).compile()
  assert chip_memory(compiled).arguments > weight_bytes(one_device)
  assert chip_memory(compiled).temporaries < 0.15 * weight_bytes(one_device)
  found = products(compiled.as_text())
  assert found and not found & gradient_shapes


def test_trained_weights_would_be_seen_to_get_them(one_device, gradient_shapes):
  step = train_through(WIDE, SHORT.loss_chunk)

  def loss(params, embeddings, batch):
    return step(embeddings, params, batch)[0]

  embeddings, params, batch = abstract_inputs(WIDE, SHORT, one_device)
  compiled = jax.jit(jax.grad(loss)).lower(params, embeddings, batch).compile()
  assert products(compiled.as_text()) & gradient_shapes


TINY = T5Config(
  vocab_size=2048,
  # A quarter of it is as wide as a TPU's vector registers; less would be padded in memory.
  emb_dim=512,
  num_heads=8,
  head_dim=64,
  mlp_dim=1024,
  num_encoder_layers=3,
  num_decoder_layers=3,
  dtype="bfloat16",
  remat="full",
)
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\(")


def collectives(text: str, kind: str) -> list[tuple[int, ...]]:
  """Shapes of what the collectives of a kind give."""
  return [
    tuple(map(int, sizes.split(",")))
    for shapes, name in COLLECTIVE.findall(text)
    if name == kind
    for sizes in re.findall(r"\w+\[([\d,]+)\]", shapes)
  ]


def test_a_slice_that_is_not_there_gathers_frozen_weights_layer_by_layer():
  mesh = make_mesh(MeshConfig(fsdp=4, tensor=4), slice_devices("v5e:4x4"))
  shape = TrainThroughShape(batch_size=16, source_length=32, target_length=16, loss_chunk=8)
  compiled = lower_train_through(TINY, shape, mesh).compile()
  _, params, _ = abstract_inputs(TINY, shape, mesh)
  total = sum(2 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  rows = 4 * 32 * TINY.emb_dim * 4  # a chip's embeddings
  # Norms and biases are split less, or not at all.
  assert total / 16 < chip_memory(compiled).arguments - rows < 1.1 * total / 16
  text = compiled.as_text()
  gathered = collectives(text, "all-gather")
  assert not [shape for shape in gathered if shape[0] == TINY.num_encoder_layers]
  # One layer's share of the tensor axis, whole along fsdp.
  assert (1, TINY.emb_dim, TINY.mlp_dim // 4) in gathered
  # Activations stay with their rows: what the tensor axis sums is a quarter of the batch.
  sums = collectives(text, "all-reduce")
  assert (4, 32, TINY.emb_dim) in sums
  assert not [shape for shape in sums if shape[:2] in ((16, 32), (16, 16))]
  # Nor do logits travel: chunks of a quarter of the rows and of the vocabulary.
  assert not [shape for shape in gathered + sums if 2048 in shape and 8 in shape]


def test_a_slice_that_nobody_knows_is_named():
  with pytest.raises(UserError, match="v9z:4x4"):
    slice_devices("v9z:4x4")


def test_a_missing_compiler_is_named(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install libtpu"):
    slice_devices("v5e:4x4")


def random_inputs(config: T5Config, shape: TrainThroughShape):
  """(embeddings, fp32 weights of the size of fresh ones, batch with padding in both sequences)."""
  rng = np.random.default_rng(0)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  _, params, _ = abstract_inputs(config, shape, mesh)

  def weight(leaf) -> np.ndarray:
    scale = 1.0 if leaf.ndim < 2 else leaf.shape[-2] ** -0.5
    return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

  b, s, t = shape.batch_size, shape.source_length, shape.target_length
  lengths = rng.integers(1, s + 1, (b, 1))
  batch = LanguageBatch(
    np.arange(s) < lengths,
    rng.integers(0, config.vocab_size, (b, t)).astype(np.int32),
    rng.integers(0, config.vocab_size, (b, t)).astype(np.int32),
    (rng.random((b, t)) > 0.3).astype(np.float32),
  )
  embeddings = rng.normal(size=(b, s, config.emb_dim)).astype(np.float32)
  return embeddings, jax.tree.map(weight, params), batch


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_mesh_computes_what_one_device_computes(tied):
  small = dataclasses.replace(TINY, vocab_size=64, emb_dim=32, mlp_dim=48, dtype="float32")
  config = dataclasses.replace(small, logits_via_embedding=tied, per_layer_relpos=tied)
  shape = TrainThroughShape(
    batch_size=4, source_length=9, target_length=6, loss_chunk=4, weight_dtype="float32"
  )
  embeddings, params, batch = random_inputs(config, shape)
  loss, gradient = jax.jit(train_through(config))(embeddings, params, batch)

  mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
  abstract = abstract_inputs(config, shape, mesh)
  placed = jax.tree.map(
    lambda x, like: jax.device_put(x, like.sharding), (embeddings, params, batch), abstract
  )
  compiled = lower_train_through(config, shape, mesh).compile()
  spread_loss, spread_gradient = compiled(*placed)
  np.testing.assert_allclose(spread_loss, loss, rtol=1e-5)
  np.testing.assert_allclose(spread_gradient, gradient, atol=1e-4 * np.abs(gradient).max())
  assert not np.asarray(spread_gradient)[~batch.mask].any()
  assert np.abs(gradient).max() > 1e-3


def test_gradients_are_the_slopes_of_the_loss():
  config = dataclasses.replace(
    TINY, vocab_size=64, emb_dim=32, mlp_dim=48, dtype="float32", num_encoder_layers=2
  )
  shape = TrainThroughShape(
    batch_size=2, source_length=9, target_length=6, loss_chunk=4, weight_dtype="float32"
  )
  embeddings, params, batch = random_inputs(config, shape)
  step = jax.jit(train_through(config, shape.loss_chunk))
  _, gradient = step(embeddings, params, batch)
  rng = np.random.default_rng(1)
  for _ in range(4):
    # Not at random, where slopes are as small as rounding errors, but uphill in some of the coordinates.
    direction = np.asarray(gradient) * rng.integers(0, 2, embeddings.shape)
    direction /= np.linalg.norm(direction)
    ahead, behind = (
      step(embeddings + sign * 0.05 * direction, params, batch)[0] for sign in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / 0.1, np.vdot(gradient, direction), rtol=1e-2)
