"""Properties of the T5 family that hold for any weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.relative_position import relative_position_bucket
from slm_jax.models.t5 import T5, T5Config
from slm_jax.models.t5_layers import DecoderLayer, EncoderLayer, RMSNorm

MT5 = T5Config(
  vocab_size=64,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=48,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
T5_1_0 = dataclasses.replace(MT5, mlp_activations=("relu",), logits_via_embedding=True)
UMT5 = dataclasses.replace(MT5, per_layer_relpos=True)
FAMILY = pytest.mark.parametrize("config", [MT5, T5_1_0, UMT5], ids=["mt5", "t5_1_0", "umt5"])

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, 64, (2, 7)).astype(np.int32)
MASK = np.arange(7) < np.array([[7], [4]])
DECODER_TOKENS = RNG.integers(2, 64, (2, 5)).astype(np.int32)
DECODER_TOKENS[:, 0] = 0


@functools.partial(jax.jit, static_argnums=0)
def init(config: T5Config):
  """Fresh parameters, boxed with their axes."""
  return T5(config).init(jax.random.key(0), TOKENS, MASK, DECODER_TOKENS)["params"]


@functools.partial(jax.jit, static_argnums=0)
def forward(config: T5Config, params, embeddings, mask, decoder_tokens, *, rng=None):
  """Logits; with `rng` as in training."""

  def run(t5: T5):
    train = rng is not None
    memory = t5.encode(embeddings, mask, train=train)
    return t5.logits(t5.decode(memory, mask, decoder_tokens, train=train))

  rngs = {} if rng is None else {"dropout": rng}
  return nn.apply(run, T5(config))({"params": params}, rngs=rngs)


@FAMILY
def test_parameters_have_t5x_names_and_logical_axes(config):
  flat = {
    "/".join(str(key.key) for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      init(config), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
  }
  assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in flat.values())
  expected = {
    "token_embedder/embedding": ("vocab", "embed"),
    "encoder/layers/pre_attention_layer_norm/scale": ("layers", "embed"),
    "encoder/layers/attention/query/kernel": ("layers", "embed", "joined_kv"),
    "decoder/layers/self_attention/out/kernel": ("layers", "joined_kv", "embed"),
    "decoder/layers/encoder_decoder_attention/key/kernel": ("layers", "embed", "joined_kv"),
    "decoder/layers/mlp/wo/kernel": ("layers", "mlp", "embed"),
    "decoder/decoder_norm/scale": ("embed",),
  }
  assert {path: flat[path].names for path in expected} == expected
  assert ("decoder/logits_dense/kernel" in flat) is not config.logits_via_embedding
  assert ("decoder/layers/relpos_bias/rel_embedding" in flat) is config.per_layer_relpos
  assert ("decoder/relpos_bias/rel_embedding" in flat) is not config.per_layer_relpos
  assert ("encoder/layers/mlp/wi/kernel" in flat) is (len(config.mlp_activations) == 1)


def one_by_one(config: T5Config, params, embeddings):
  """(memory, hidden states of the decoder over it) without a scan."""
  positions = jnp.arange(7)

  def run(side: str, layer: nn.Module, x, *inputs):
    stack = params[side]
    position = relative_position_bucket(
      positions[None] - positions[:, None],
      bidirectional=side == "encoder",
      num_buckets=config.relpos_num_buckets,
      max_distance=config.relpos_max_distance,
    )
    if not config.per_layer_relpos:
      position = stack["relpos_bias"]["rel_embedding"][:, position][None]
    for index in range(2):
      layer_params = jax.tree.map(lambda p, i=index: p[i], stack["layers"])
      x, _ = layer.apply({"params": layer_params}, x, *inputs, position, False)  # pyright: ignore
    return RMSNorm(config).apply({"params": stack[f"{side}_norm"]}, x)

  mask = MASK[:, None, None]
  memory = run("encoder", EncoderLayer(config), embeddings * MASK[..., None], mask)
  causal = np.tril(np.ones((7, 7), bool))[None, None]
  inputs = (memory * MASK[..., None], mask, causal)
  return memory, run("decoder", DecoderLayer(config), embeddings, *inputs)


def scanned(config: T5Config, params, embeddings):
  """The same by the model."""
  t5 = functools.partial(T5(config).apply, {"params": params})
  memory: Any = t5(embeddings, MASK, method="encode")
  return memory, t5(memory, MASK, TOKENS, method="decode")


@FAMILY
def test_scanned_stack_equals_layers_one_by_one(config):
  params = nn.unbox(init(config))
  embeddings = params["token_embedder"]["embedding"][TOKENS]
  pairs = zip(
    scanned(config, params, embeddings), one_by_one(config, params, embeddings), strict=True
  )
  for actual, expected in pairs:
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_gradients_through_a_scan_are_those_of_layers_one_by_one():
  def slopes(stack):
    """Of a number that depends on all outputs, for all parameters."""

    def number(params):
      outputs = stack(UMT5, params, params["token_embedder"]["embedding"][TOKENS])
      return sum(jnp.sin(x * MASK[..., None]).sum() for x in outputs)

    return jax.jit(jax.grad(number))(nn.unbox(init(UMT5)))

  gradients, expected = slopes(scanned), slopes(one_by_one)
  layers = jax.tree.leaves(gradients["encoder"]["layers"])
  assert all(np.abs(x[i]).max() > 1e-4 for x in layers for i in range(2)), "every layer is reached"
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(compare, gradients, expected)


def test_a_position_sees_only_tokens_up_to_itself():
  params = nn.unbox(init(MT5))
  embeddings = params["token_embedder"]["embedding"][TOKENS]
  before = forward(MT5, params, embeddings, MASK, DECODER_TOKENS)
  changed = DECODER_TOKENS.copy()
  changed[:, 3] = (changed[:, 3] + 1) % 64
  after = forward(MT5, params, embeddings, MASK, changed)
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert np.all(np.abs(before[:, 3:] - after[:, 3:]).max(-1) > 1e-3)


@pytest.mark.parametrize("noise", [1e3, np.nan])
def test_what_stands_in_padding_changes_nothing(noise):
  params = nn.unbox(init(MT5))
  embeddings = params["token_embedder"]["embedding"][TOKENS]
  mask = MASK.copy()
  mask[0, 2] = False  # a hole, not only a tail
  loud = jnp.where(mask[..., None], embeddings, noise)
  quiet = forward(MT5, params, embeddings, mask, DECODER_TOKENS)
  np.testing.assert_array_equal(forward(MT5, params, loud, mask, DECODER_TOKENS), quiet)

  @jax.jit
  def decode(memory):
    return T5(MT5).apply({"params": params}, memory, mask, DECODER_TOKENS, method="decode")

  noisy = jnp.where(mask[..., None], embeddings, noise)
  np.testing.assert_array_equal(decode(noisy), decode(embeddings))

  # More padding is no different from less, up to the order of sums.
  wider = jnp.pad(loud, ((0, 0), (0, 4), (0, 0)), constant_values=noise)
  wide_mask = np.pad(mask, ((0, 0), (0, 4)))
  padded = forward(MT5, params, wider, wide_mask, DECODER_TOKENS)
  np.testing.assert_allclose(padded, quiet, atol=1e-5)


def test_a_row_without_any_real_position_is_finite():
  params = nn.unbox(init(MT5))
  embeddings = params["token_embedder"]["embedding"][TOKENS]
  logits = forward(MT5, params, embeddings, np.zeros_like(MASK), DECODER_TOKENS)
  assert np.isfinite(logits).all()


def test_rematerialisation_costs_compute_and_changes_no_gradient():
  params = nn.unbox(init(MT5))
  embeddings = params["token_embedder"]["embedding"][TOKENS]
  rng = jax.random.key(1)

  def lowered_gradient(remat: str, loss):
    config = dataclasses.replace(MT5, dropout_rate=0.2, remat=remat)
    return jax.jit(jax.grad(functools.partial(loss, config))).lower(params)

  def whole(config, params):
    return forward(config, params, embeddings, MASK, DECODER_TOKENS, rng=rng).std()

  flops = [
    lowered_gradient(remat, whole).cost_analysis()["flops"] for remat in ("none", "dots", "full")
  ]
  assert flops[0] < flops[1] < 0.95 * flops[2]

  # Dropout has to draw the same again. One stack is enough, and compiles in half the time.
  def encoder(config, params):
    t5, variables = T5(config), {"params": params}
    rngs = {"dropout": rng}
    return t5.apply(variables, embeddings, MASK, method="encode", train=True, rngs=rngs).std()

  expected, actual = (
    lowered_gradient(remat, encoder).compile()(params) for remat in ("none", "full")
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


def test_dropout_acts_in_training_only():
  config = dataclasses.replace(MT5, dropout_rate=0.3)
  params = nn.unbox(init(MT5))
  inputs = (params["token_embedder"]["embedding"][TOKENS], MASK, DECODER_TOKENS)
  still = forward(MT5, params, *inputs)
  np.testing.assert_array_equal(forward(config, params, *inputs), still)
  np.testing.assert_array_equal(forward(MT5, params, *inputs, rng=jax.random.key(1)), still)
  first, again, other = (
    forward(config, params, *inputs, rng=jax.random.key(seed)) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-2 < np.abs(first - still).max()


def test_bfloat16_weights_are_computed_in_the_configured_type():
  params = nn.unbox(init(MT5))
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  embeddings = rounded["token_embedder"]["embedding"][TOKENS]
  inputs = (embeddings, MASK, DECODER_TOKENS)
  np.testing.assert_array_equal(forward(MT5, half, *inputs), forward(MT5, rounded, *inputs))

  config = dataclasses.replace(MT5, dtype="bfloat16")
  memory = jax.eval_shape(
    lambda: T5(config).apply({"params": half}, embeddings, MASK, method="encode")
  )
  assert memory.dtype == jnp.bfloat16
  logits = forward(config, half, *inputs)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, forward(MT5, rounded, *inputs), atol=0.3)


def test_fresh_layers_differ_and_give_activations_of_unit_size():
  params = nn.unbox(init(MT5))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    assert "'layers'" not in name or "norm" in name or np.abs(leaf[0] - leaf[1]).max() > 0.01, name
  embeddings = params["token_embedder"]["embedding"][TOKENS]
  logits = forward(MT5, params, embeddings, MASK, DECODER_TOKENS)
  assert 0.5 < np.std(logits) < 2.0


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("num_heads", 0),
    ("mlp_activations", ("tanh",)),
    ("mlp_activations", ()),
    ("relpos_num_buckets", 30),
    ("relpos_max_distance", 16),
    ("dropout_rate", 1.0),
    ("dtype", "float64"),
    ("remat", "some"),
    ("eos_id", 64),
  ],
)
def test_an_impossible_config_is_refused_by_name(field, value):
  with pytest.raises(ValueError, match=field):
    dataclasses.replace(MT5, **{field: value})
