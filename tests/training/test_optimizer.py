"""The schedule and AdamW's variants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


@pytest.mark.parametrize(
  ("decay", "expected"),
  [
    ("constant", {0: 0.1, 4: 0.5, 9: 1.0, 54: 1.0, 99: 1.0}),
    ("cosine", {0: 0.1, 9: 1.0, 54: 0.5, 99: 0.0}),
    ("rsqrt", {0: 0.1, 9: 1.0, 39: 0.5}),
  ],
)
def test_schedule(decay, expected):
  rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay=decay), 100)
  for step, value in expected.items():
    np.testing.assert_allclose(rate(step), value, atol=1e-6)


def first_update(config, param, grad):
  optimizer = make_optimizer(config, 100)
  params = {"w": jnp.asarray(param)}
  updates, _ = optimizer.update({"w": jnp.asarray(grad)}, optimizer.init(params), params)
  return np.asarray(updates["w"])


CONSTANT = {"learning_rate": 0.1, "warmup_steps": 0, "decay": "constant"}


def test_first_adam_step_is_the_learning_rate_against_the_gradient():
  update = first_update(OptimizerConfig(**CONSTANT), np.ones((2, 2)), np.array([[1.0, -2], [3, 4]]))
  np.testing.assert_allclose(update, [[-0.1, 0.1], [-0.1, -0.1]], rtol=1e-4)


def test_rms_scaling_makes_the_step_relative():
  config = OptimizerConfig(**CONSTANT, scale_by_parameter_rms=True)
  update = first_update(config, np.full((2, 2), 0.02), np.ones((2, 2)))
  np.testing.assert_allclose(update, -0.1 * 0.02, rtol=1e-4)


def test_decay_spares_vectors():
  config = OptimizerConfig(**CONSTANT, weight_decay=0.5)
  np.testing.assert_allclose(first_update(config, np.ones((2, 2)), np.zeros((2, 2))), -0.05)
  np.testing.assert_allclose(first_update(config, np.ones(2), np.zeros(2)), 0.0)


@pytest.mark.parametrize(
  "bad",
  [
    {"algorithm": "sgd"},
    {"decay": "linear"},
    {"learning_rate": 0.0},
    {"clip_norm": -1.0},
    {"warmup_steps": -1},
  ],
)
def test_bad_settings_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    OptimizerConfig(**bad)


def test_adafactor_keeps_rows_and_columns_only():
  config = OptimizerConfig(**CONSTANT, algorithm="adafactor")
  params = {"w": jnp.ones((256, 512)), "b": jnp.ones(16)}
  optimizer = make_optimizer(config, 100)
  state = optimizer.init(params)
  assert sum(x.size for x in jax.tree.leaves(state)) < 256 + 512 + 16 + 100
  gradient = {"w": jnp.full((256, 512), 1e-3), "b": jnp.full(16, -1e-3)}
  updates, _ = optimizer.update(gradient, state, params)
  # An equal gradient everywhere: its second moment is its square, the update the learning rate.
  np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-3)
  np.testing.assert_allclose(updates["b"], 0.1, rtol=1e-3)
