"""Connectionist temporal classification (Graves et al., ICML 2006): loss and greedy decoding."""

import jax
import jax.numpy as jnp
import optax


def ctc_feasible(logit_mask: jax.Array, labels: jax.Array, label_mask: jax.Array) -> jax.Array:
  """Whether the frames suffice for the labels: one each, and a blank between equal neighbours.

  Args:
    logit_mask: bool [B, T], True = real.
    labels: int32 [B, L].
    label_mask: bool [B, L], True = real.

  Returns:
    bool [B].
  """
  repeats = (labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:]
  needed = label_mask.sum(axis=1) + repeats.sum(axis=1)
  return logit_mask.sum(axis=1) >= needed


def ctc_loss(
  logits: jax.Array,
  logit_mask: jax.Array,
  labels: jax.Array,
  label_mask: jax.Array,
  blank_id: int = 0,
) -> jax.Array:
  """Negative log-probability of each example's labels, summed over alignments.

  An example whose labels need more frames than it has (see `ctc_feasible`) has no alignment: its
  loss and gradient are 0, and a caller that averages should count only the feasible ones.

  Args:
    logits: [B, T, V], not normalised.
    logit_mask: bool [B, T], True = real, real frames first.
    labels: int32 [B, L], no blanks among the real ones.
    label_mask: bool [B, L], True = real, real labels first.
    blank_id: class of the blank.

  Returns:
    fp32 [B], in nats, per example (not divided by its length).
  """
  losses = optax.ctc_loss(
    logits.astype(jnp.float32),
    1.0 - logit_mask.astype(jnp.float32),
    labels,
    1.0 - label_mask.astype(jnp.float32),
    blank_id=blank_id,
  )
  return jnp.where(ctc_feasible(logit_mask, labels, label_mask), losses, 0.0)


def pack_left(values: jax.Array, keep: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Moves the kept positions to the front, in order.

  Args:
    values: [B, T, ...].
    keep: bool [B, T].
    size: number of positions of the result; kept positions past it are dropped.

  Returns:
    (values [B, size, ...], 0 where nothing is left; mask bool [B, size], True = real).
  """
  order = jnp.argsort(~keep, axis=1, stable=True)  # kept positions first, both groups in order
  if size > order.shape[1]:
    order = jnp.pad(order, ((0, 0), (0, size - order.shape[1])))
  order = order[:, :size]
  mask = jnp.arange(size)[None] < keep.sum(axis=1, keepdims=True)
  trailing = (1,) * (values.ndim - 2)
  packed = jnp.take_along_axis(values, order.reshape(*order.shape, *trailing), axis=1)
  return jnp.where(mask.reshape(*mask.shape, *trailing), packed, 0), mask


def starts_of_runs(best: jax.Array, mask: jax.Array) -> jax.Array:
  """Marks the real frames whose most probable class differs from the previous frame's.

  best int32 [B, T], mask bool [B, T] -> bool [B, T].
  """
  previous = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return mask & (best != previous)


def greedy_decode(
  logits: jax.Array, mask: jax.Array, blank_id: int = 0
) -> tuple[jax.Array, jax.Array]:
  """Most probable class per frame, repeats merged, blanks removed.

  Args:
    logits: [B, T, V].
    mask: bool [B, T], True = real, real frames first.
    blank_id: class of the blank.

  Returns:
    (ids int32 [B, T], left-packed, padded with 0; lengths int32 [B]).
  """
  best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  keep = starts_of_runs(best, mask) & (best != blank_id)
  ids, kept = pack_left(best, keep, best.shape[1])
  return ids, kept.sum(axis=1).astype(jnp.int32)
