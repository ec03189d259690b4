"""CTC: PyTorch's loss, labels that do not fit, greedy decoding against plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from slm_jax.models.ctc import ctc_feasible, ctc_loss, greedy_decode, pack_left

RNG = np.random.default_rng(0)


def mask_of(lengths: list[int], size: int) -> np.ndarray:
  return np.arange(size) < np.array(lengths)[:, None]


def test_loss_and_gradient_match_torch():
  logits = RNG.normal(size=(5, 12, 7)).astype(np.float32) * 2
  frames, labels_per_row = [12, 9, 5, 12, 3], [4, 3, 5, 0, 1]
  labels = RNG.integers(1, 7, (5, 6)).astype(np.int32)
  labels[0, :4] = [2, 2, 3, 3]
  labels[2, :5] = [1, 2, 3, 4, 5]  # as many labels as frames

  def total(logits):
    losses = ctc_loss(logits, mask_of(frames, 12), labels, mask_of(labels_per_row, 6))
    return losses.sum(), losses

  gradient, losses = jax.jit(jax.grad(total, has_aux=True))(logits)
  reference = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.CTCLoss(blank=0, reduction="none")(
    reference.log_softmax(-1).transpose(0, 1),
    torch.tensor(labels, dtype=torch.long),
    torch.tensor(frames),
    torch.tensor(labels_per_row),
  )
  expected.sum().backward()
  np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-4)
  np.testing.assert_allclose(gradient, reference.grad.numpy(), atol=1e-4)


def test_labels_that_do_not_fit_weigh_nothing():
  logits = RNG.normal(size=(4, 4, 5)).astype(np.float32)
  labels = np.array([[1, 2, 3, 4, 1], [1, 1, 2, 2, 0], [1, 1, 2, 0, 0], [1, 2, 0, 0, 0]], np.int32)
  label_mask = mask_of([5, 4, 3, 2], 5)
  logit_mask = mask_of([4, 4, 4, 0], 4)
  assert ctc_feasible(logit_mask, labels, label_mask).tolist() == [False, False, True, False]

  def total(logits):
    losses = ctc_loss(logits, logit_mask, labels, label_mask)
    return losses.sum(), losses

  gradient, losses = jax.jit(jax.grad(total, has_aux=True))(logits)
  assert (np.asarray(losses) > 0).tolist() == [False, False, True, False]
  assert np.isfinite(losses).all() and np.isfinite(gradient).all()
  assert not np.asarray(gradient)[[0, 1, 3]].any() and np.asarray(gradient)[2].any()


def test_feasible_is_exactly_having_an_alignment():
  """Checked by enumerating every path over two classes and the blank."""
  for num_frames, labels in itertools.product(
    range(1, 5), [(1,), (1, 1), (1, 2), (1, 1, 1), (1, 2, 2)]
  ):
    paths = itertools.product(range(3), repeat=num_frames)
    reachable = any(tuple(k for k, _ in itertools.groupby(path) if k) == labels for path in paths)
    feasible = ctc_feasible(
      jnp.ones((1, num_frames), bool), jnp.array([labels]), jnp.ones((1, len(labels)), bool)
    )
    assert bool(feasible[0]) == reachable, (num_frames, labels)


def test_padding_content_changes_no_loss():
  logits = RNG.normal(size=(2, 8, 5)).astype(np.float32)
  labels = RNG.integers(1, 5, (2, 4)).astype(np.int32)
  logit_mask, label_mask = mask_of([8, 5], 8), mask_of([3, 2], 4)
  loud_logits = np.where(logit_mask[..., None], logits, 50.0)
  loss = jax.jit(ctc_loss)
  loud_labels = np.where(label_mask, labels, 4).astype(np.int32)
  np.testing.assert_allclose(
    loss(logits, logit_mask, labels, label_mask),
    loss(loud_logits, logit_mask, loud_labels, label_mask),
    rtol=1e-6,
  )


def test_greedy_decode_matches_python():
  logits = RNG.normal(size=(20, 11, 4)).astype(np.float32)
  lengths = RNG.integers(0, 12, 20)
  ids, counts = jax.jit(greedy_decode)(logits, mask_of(list(lengths), 11))
  assert ids.shape == (20, 11) and ids.dtype == jnp.int32
  for row in range(20):
    best = logits[row, : lengths[row]].argmax(-1)
    expected = [key for key, _ in itertools.groupby(best) if key]
    assert ids[row, : counts[row]].tolist() == expected
    assert not np.asarray(ids)[row, counts[row] :].any()


def test_pack_left_keeps_order_and_drops_the_rest():
  values = jnp.arange(1, 13).reshape(2, 6)
  keep = jnp.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]], bool)
  packed, mask = pack_left(values, keep, 2)
  assert packed.tolist() == [[2, 4], [12, 0]] and mask.tolist() == [[True, True], [True, False]]
  packed, mask = pack_left(values, keep, 8)
  assert packed[0].tolist() == [2, 4, 5, 0, 0, 0, 0, 0] and mask.sum(axis=1).tolist() == [3, 1]
