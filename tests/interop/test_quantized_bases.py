"""int8 bases: the rounding as NumPy does it, computation as over the rounded floats, on a mesh too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from slm_jax.errors import UserError
from slm_jax.interop import load_language_model, load_speech_encoder, quantized_parameter
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.quantized_parameter import QuantizedParameter
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.t5 import T5
from slm_jax.training.losses import vocabulary_cross_entropy
from slm_jax.training.sharding import MeshConfig, make_mesh
from tests.t5x_folders import CONFIG, T5_1_0, UMT5, random_params

RNG = np.random.default_rng(0)
TOKENS = np.array([[5, 9, 30, 2, 1], [7, 8, 1, 0, 0]])
TARGETS = np.array([[3, 4, 5, 1], [6, 1, 0, 0]])


def rounded(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
  """The definition: (integers, scales), one scale for all that a product sums over."""
  scale = np.abs(weights).max(axis=axis, keepdims=True) / np.float32(127)
  return np.rint(weights / scale), scale


def dequantized(params: dict) -> dict:
  flat = flatten_dict(params, sep="/")
  floats = {}
  for path, leaf in flat.items():
    if leaf.dtype == jnp.int8:
      axis = -1 if path.endswith("embedding") else -2
      leaf = np.asarray(leaf, np.float32) * np.expand_dims(flat[path + "_scale"], axis)
    if not path.endswith("_scale"):
      floats[path] = np.asarray(leaf)
  return unflatten_dict(floats, sep="/")


@pytest.fixture(scope="module", params=[CONFIG, UMT5, T5_1_0], ids=["mt5", "umt5", "t5_1_0"])
def folder(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("float")
  params = jax.tree.map(lambda x: 0.2 * x, random_params(request.param))
  save_language_model(path, request.param, params)
  return path


def test_large_weights_become_the_definitions_integers(folder):
  floats = flatten_dict(load_language_model(folder).params, sep="/")
  loaded = load_language_model(folder, dtype="int8")
  flat = flatten_dict(loaded.params, sep="/")
  assert loaded.config.weights == "int8"
  kernels = [path for path in floats if path.endswith(("kernel", "token_embedder/embedding"))]
  for path in floats:
    if path not in kernels:
      np.testing.assert_array_equal(flat[path], floats[path])
      continue
    axis = -1 if path.endswith("embedding") else -2
    integers, scale = rounded(np.asarray(floats[path]), axis)
    np.testing.assert_array_equal(flat[path], integers, err_msg=path)
    np.testing.assert_array_equal(flat[path + "_scale"], scale.squeeze(axis), err_msg=path)
  assert len(flat) == len(floats) + len(kernels) and len(kernels) > 10
  size = sum(x.nbytes for x in flat.values()) / sum(x.nbytes for x in floats.values())
  assert size < 0.30  # a quarter, and scales of rows that are short here


def loss_and_gradient(config, params, embeddings, mask):
  def loss(embeddings):
    def forward(t5):
      memory = t5.encode(embeddings, mask)
      hidden = t5.decode(memory, mask, jnp.asarray(TARGETS))
      return t5.output_projection(hidden), t5.logits(hidden)

    (hidden, kernel), logits = nn.apply(forward, T5(config))({"params": params})
    weights = jnp.asarray(TARGETS != 0, jnp.float32)
    total, _ = vocabulary_cross_entropy(hidden, kernel, jnp.asarray(TARGETS), weights, chunk=2)
    return total, logits

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(embeddings)


def test_computation_is_that_of_the_rounded_floats(folder):
  """Logits, loss, the gradient to what is read, and the ids of greedy and beam decoding."""
  int8 = load_language_model(folder, dtype="int8")
  floats = dequantized(int8.params)
  config = dataclasses.replace(int8.config, weights="float")
  embeddings = RNG.normal(size=(2, 5, 32)).astype(np.float32)
  mask = jnp.asarray(TOKENS != 0)
  (loss, logits), gradient = loss_and_gradient(int8.config, int8.params, embeddings, mask)
  (loss_, logits_), gradient_ = loss_and_gradient(config, floats, embeddings, mask)
  np.testing.assert_allclose(logits, logits_, atol=1e-4)
  np.testing.assert_allclose(loss, loss_, rtol=1e-5)
  np.testing.assert_allclose(gradient, gradient_, atol=1e-4)
  assert not np.asarray(gradient)[1, 3:].any()
  reference = type(int8)(config, floats)
  for options in ({}, {"num_beams": 3}):
    ids = [m.generate(tokens=TOKENS, max_new_tokens=6, **options).ids for m in (int8, reference)]
    np.testing.assert_array_equal(*ids)


def test_rounding_costs_little(folder):
  int8, full = load_language_model(folder, dtype="int8"), load_language_model(folder)
  logits = [m.logits(m.encode(tokens=TOKENS), TOKENS != 0, TARGETS) for m in (int8, full)]
  error = np.sqrt(np.mean(np.square(logits[0] - logits[1])) / np.var(logits[1]))
  assert 1e-4 < error < 0.05


def test_a_mesh_holds_the_same_integers(folder):
  whole = load_language_model(folder, dtype="int8")
  spread = load_language_model(
    folder, dtype="int8", mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  )
  jax.tree.map(np.testing.assert_array_equal, whole.params, spread.params)
  wo = spread.params["decoder"]["layers"]["mlp"]["wo"]
  assert (
    wo["kernel"].dtype == jnp.int8
    and len({str(s.index) for s in wo["kernel"].addressable_shards}) == 4
  )
  assert len({str(s.index) for s in wo["kernel_scale"].addressable_shards}) == 2
  logits = [m.logits(m.encode(tokens=TOKENS), TOKENS != 0, TARGETS) for m in (whole, spread)]
  np.testing.assert_allclose(*logits, atol=1e-4)


def test_no_more_than_a_block_is_read_at_once(folder, monkeypatch):
  monkeypatch.setattr(quantized_parameter, "_BLOCK_ELEMENTS", 48 * 32)
  read, sizes = StoredParameter.read, []

  def reading(self, index=None):
    sizes.append(read(self, index))
    return sizes[-1]

  monkeypatch.setattr(StoredParameter, "read", reading)
  lm = load_language_model(folder, dtype="int8")
  stack = lm.params["decoder"]["layers"]["mlp"]["wo"]["kernel"]
  shapes = {x.shape for x in sizes if x.shape[1:] == stack.shape[1:]}
  assert shapes == {(1, *stack.shape[1:])}
  assert max(x.size for x in sizes) <= 48 * 32


def test_a_part_along_the_summed_axis_has_the_whole_ones_scale(tmp_path, tiny_bases):
  from slm_jax.interop import open_language_model

  source = open_language_model(tiny_bases["language_model"])
  kernel = source.parameters["encoder/layers/mlp/wo/kernel"]
  values = QuantizedParameter(source=kernel, axis=-2, part="values")
  whole = np.asarray(values)
  part = values.read((slice(1, 2), slice(8, 24), slice(3, 9)))
  np.testing.assert_array_equal(part, whole[1:2, 8:24, 3:9])


def test_speech_encoders_round_too(tiny_bases):
  int8 = load_speech_encoder(tiny_bases["speech_encoder"], dtype="int8")
  full = load_speech_encoder(tiny_bases["speech_encoder"])
  assert int8.params["ctc_head"]["kernel"].dtype == jnp.int8
  audio = (RNG.normal(size=(2, 8000)) * 3000).astype(np.int16)
  out, expected = (m(audio, [8000, 3000]) for m in (int8, full))
  error = np.abs(out.frames - expected.frames).max() / np.abs(expected.frames).max()
  assert 1e-5 < error < 0.05
  exact = type(int8)(full.config, dequantized(int8.params))(audio, [8000, 3000])
  np.testing.assert_allclose(out.ctc_logits, exact.ctc_logits, atol=1e-4)


def test_unknown_types_are_named(folder):
  with pytest.raises(UserError, match="int4.*int8"):
    load_language_model(folder, dtype="int4")
