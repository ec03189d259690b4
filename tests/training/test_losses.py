"""Token cross-entropy against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from slm_jax.training.losses import token_cross_entropy


def example():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 7)).astype(np.float32) * 3
  targets = rng.integers(0, 7, (2, 3)).astype(np.int32)
  weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
  return logits, targets, weights


def test_equals_torch_over_weighted_positions():
  logits, targets, weights = example()
  loss, correct = token_cross_entropy(logits, targets, weights)
  reference = torch.nn.functional.cross_entropy(
    torch.tensor(logits).reshape(-1, 7), torch.tensor(targets).long().reshape(-1), reduction="none"
  ).numpy()
  np.testing.assert_allclose(loss, (reference * weights.reshape(-1)).sum(), rtol=1e-6)
  np.testing.assert_allclose(correct, ((logits.argmax(-1) == targets) * weights).sum())


def test_z_loss_adds_the_squared_log_partition():
  logits, targets, weights = example()
  plain, _ = token_cross_entropy(logits, targets, weights)
  with_z, _ = token_cross_entropy(logits, targets, weights, z_loss=0.1)
  log_z = torch.logsumexp(torch.tensor(logits), -1).numpy()
  np.testing.assert_allclose(with_z - plain, 0.1 * (log_z**2 * weights).sum(), rtol=1e-5)


def test_positions_without_weight_get_no_gradient():
  logits, targets, weights = example()
  gradient = jax.grad(lambda x: token_cross_entropy(x, targets, weights)[0])(jnp.asarray(logits))
  assert np.all(np.asarray(gradient)[weights == 0] == 0)
  assert np.all(np.abs(np.asarray(gradient)[weights == 1]).sum(-1) > 0)
