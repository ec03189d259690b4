"""Conformer: a NumPy block written from the papers, what attention sees, scan = loop, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.attention_window import attention_window
from slm_jax.models.conformer import ConformerBlock, ConformerConfig, ConformerStack
from slm_jax.models.relative_attention import RelativeAttention, relative_positions

CONFIG = ConformerConfig(num_layers=3, model_dim=8, num_heads=2, attention="full")


def randomised(module: nn.Module, *arguments) -> dict:
  """Parameters drawn afresh, so that biases and scales count too."""
  rng = np.random.default_rng(0)
  arrays = [x for x in arguments if isinstance(x, np.ndarray)]
  rest = arguments[len(arrays) :]
  shapes = jax.eval_shape(lambda key, *x: module.init(key, *x, *rest), jax.random.key(0), *arrays)
  shapes = nn.unbox(shapes)
  return jax.tree.map(lambda x: rng.normal(0.5, 0.5, x.shape).astype(np.float32), shapes)


def run(module: nn.Module, params: dict, *arguments) -> np.ndarray:
  """Compiled in one piece: far faster than operation by operation."""
  return jax.jit(module.apply)(params, *arguments)


def inputs(batch: int = 2, num_frames: int = 9, lengths=(9, 6)) -> tuple[np.ndarray, np.ndarray]:
  x = np.random.default_rng(1).normal(size=(batch, num_frames, 8)).astype(np.float32)
  return x, np.arange(num_frames) < np.array(lengths)[:, None]


# The reference: one utterance without padding, every loop written out.


def rms_norm(x, p):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * p["scale"]


def linear(x, p):
  return x @ p["kernel"] + p.get("bias", 0.0)


def swish(x):
  return x / (1 + np.exp(-x))


def feed_forward(x, p):
  return linear(swish(linear(rms_norm(x, p["norm"]), p["wi"])), p["wo"])


def attention(x, p, heads, sees):
  """Transformer-XL's score of query i and key j: (q_i + u) k_j + (q_i + v) W r_{i-j}."""
  num_frames, width = x.shape
  size = width // heads
  q, k, v = (
    linear(x, p[name]).reshape(num_frames, heads, size) for name in ("query", "key", "value")
  )
  out = np.zeros((num_frames, heads, size))
  for n in range(heads):
    for i in range(num_frames):
      scores = np.full(num_frames, -np.inf)
      for j in range(num_frames):
        if not sees(i, j):
          continue
        angle = (i - j) / 10_000 ** (np.arange(0, width, 2) / width)
        r = linear(np.concatenate([np.sin(angle), np.cos(angle)]), p["position"])
        r = r.reshape(heads, size)[n]
        content = (q[i, n] + p["content_bias"][n]) @ k[j, n]
        scores[j] = (content + (q[i, n] + p["position_bias"][n]) @ r) / np.sqrt(size)
      weights = np.exp(scores - scores.max())
      out[i, n] = (weights / weights.sum()) @ v[:, n]
  return linear(out.reshape(num_frames, width), p["out"])


def conv_module(x, p):
  y = rms_norm(x, p["norm"])
  y = linear(y, p["value"]) / (1 + np.exp(-linear(y, p["gate"])))
  kernel = p["depthwise"]["kernel"]
  half = len(kernel) // 2
  out = np.zeros_like(y)
  for t in range(len(y)):
    for k in range(len(kernel)):
      if 0 <= t + k - half < len(y):
        out[t] += kernel[k] * y[t + k - half]
  return linear(swish(rms_norm(out, p["conv_norm"])), p["out"])


def block(x, p, heads, sees):
  x = x + 0.5 * feed_forward(x, p["ffn_in"])
  x = x + attention(rms_norm(x, p["attention_norm"]), p["attention"], heads, sees)
  x = x + conv_module(x, p["conv"])
  x = x + 0.5 * feed_forward(x, p["ffn_out"])
  return rms_norm(x, p["norm"])


SIGHT = {
  "full": lambda i, j: True,
  "local": lambda i, j: i - 2 <= j <= i + 1,
  "chunk": lambda i, j: i // 4 == j // 4,
}


@pytest.mark.parametrize("kind", SIGHT)
def test_stack_matches_numpy(kind):
  config = dataclasses.replace(
    CONFIG, attention=kind, left_context=2, right_context=1, chunk_size=4, num_layers=2
  )
  stack = ConformerStack(config)
  x, mask = inputs()
  params = randomised(stack, x, mask)
  result = run(stack, params, x, mask)
  for row, length in enumerate(mask.sum(axis=1)):
    y = x[row, :length].astype(np.float64)
    for layer in range(2):
      layer_params = jax.tree.map(lambda p: p[layer].astype(np.float64), params["params"]["layers"])  # noqa: B023
      y = block(y, layer_params, 2, SIGHT[kind])
    np.testing.assert_allclose(result[row, :length], y, atol=2e-4)
    assert not np.asarray(result[row, length:]).any()


@pytest.mark.parametrize("kind", SIGHT)
def test_attention_sees_only_what_it_may(kind):
  config = dataclasses.replace(
    CONFIG, attention=kind, left_context=2, right_context=1, chunk_size=4, conv_kernel_size=1,
    num_layers=1,
  )  # fmt: skip
  stack = ConformerStack(config)
  x, mask = inputs(1, lengths=(8,))
  # Small values: a saturated softmax would round what it hardly sees to nothing.
  params = jax.tree.map(lambda p: 0.2 * p, randomised(stack, x, mask))
  jacobian = jax.jit(jax.jacrev(lambda x: stack.apply(params, x, mask)[0, :, 0]))(x)  # [T, 1, S, D]
  reached = np.abs(np.asarray(jacobian)[:, 0]).max(axis=-1) > 1e-9
  expected = [[SIGHT[kind](i, j) and i < 8 and j < 8 for j in range(9)] for i in range(9)]
  np.testing.assert_array_equal(reached, expected)


def test_query_without_keys_gives_the_output_bias():
  x, _ = inputs()
  layer = RelativeAttention(2, "float32")
  window = attention_window("local", 9, left=0, right=0, chunk=1)
  mask = np.ones((2, 9), bool)
  mask[0, 3] = False
  positions = relative_positions(window, 8)
  params = randomised(layer, x, mask, positions, window)

  def total(x):
    y = layer.apply(params, x, mask, positions, window)
    return y.sum(), y

  gradient, y = jax.jit(jax.grad(total, has_aux=True))(x)
  np.testing.assert_allclose(y[0, 3], params["params"]["out"]["bias"], atol=1e-6)
  assert np.isfinite(gradient).all() and np.isfinite(y).all()


def test_scan_equals_a_loop_over_layers():
  x, mask = inputs()
  stack = ConformerStack(CONFIG)
  params = randomised(stack, x, mask)
  window = attention_window("full", 9, left=0, right=0, chunk=1)
  positions = relative_positions(window, 8)
  y = jnp.asarray(x)
  for layer in range(CONFIG.num_layers):
    layer_params = jax.tree.map(lambda p: p[layer], params["params"]["layers"])  # noqa: B023
    y, _ = run(ConformerBlock(CONFIG, window), {"params": layer_params}, y, mask, positions)
  np.testing.assert_allclose(run(stack, params, x, mask), y * mask[..., None], atol=1e-5)


@pytest.mark.parametrize("change", [dict(remat="full"), dict(remat="dots")], ids=str)
def test_memory_and_speed_options_change_no_gradient(change):
  x, mask = inputs()
  stack = ConformerStack(CONFIG)
  other = ConformerStack(dataclasses.replace(CONFIG, **change))
  params = randomised(stack, x, mask)

  def gradient(module):
    return jax.jit(jax.grad(lambda p: (module.apply(p, x, mask) ** 2 * x).sum()))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    gradient(stack),
    gradient(other),
  )


def test_padding_and_neighbours_change_nothing():
  x, mask = inputs()
  stack = ConformerStack(CONFIG)
  params = randomised(stack, x, mask)
  both = run(stack, params, x, mask)
  loud = run(stack, params, np.where(mask[..., None], x, 1e3), mask)
  np.testing.assert_allclose(both, loud, atol=1e-5)
  alone = run(stack, params, x[1:, :6], mask[1:, :6])
  np.testing.assert_allclose(both[1:, :6], alone, atol=1e-5)
  empty = run(stack, params, x, np.zeros_like(mask))
  assert not np.asarray(empty).any()


def test_dropout_acts_in_training_only():
  x, mask = inputs()
  stack = ConformerStack(dataclasses.replace(CONFIG, dropout_rate=0.5))
  params = randomised(stack, x, mask)

  @jax.jit
  def drawn(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return stack.apply(params, x, mask, train=True, rngs=rngs)

  np.testing.assert_array_equal(drawn(0), drawn(0))
  assert np.abs(drawn(0) - drawn(1)).max() > 1e-2
  plain = run(ConformerStack(CONFIG), params, x, mask)
  np.testing.assert_array_equal(run(stack, params, x, mask), plain)


@pytest.mark.parametrize(
  "change",
  [dict(num_layers=2), dict(ffn_dim=16), dict(conv_kernel_size=3), dict(num_heads=4)],
  ids=str,
)
def test_shape_fields_change_the_parameters(change):
  def shapes(config):
    x, mask = inputs()
    return jax.tree.map(
      jnp.shape, nn.unbox(jax.eval_shape(ConformerStack(config).init, jax.random.key(0), x, mask))
    )

  assert shapes(CONFIG) != shapes(dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(model_dim=9), "model_dim=9"),
    (dict(conv_kernel_size=4), "conv_kernel_size=4"),
    (dict(attention="global"), "attention='global'"),
    (dict(remat="some"), "remat='some'"),
    (dict(chunk_size=0), "chunk_size=0"),
    (dict(num_layers=0), "num_layers=0"),
    (dict(subsampling_channels=(3,)), "subsampling_channels"),
  ],
  ids=str,
)
def test_bad_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)
