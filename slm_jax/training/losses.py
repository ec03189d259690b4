"""Token losses, summed (not averaged), as in T5X: the step divides by the weight of the whole batch.

B batch, T target length, D model width, V vocab, C chunk of the target length.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import Kernel, QuantizedKernel


def vocabulary_cross_entropy(
  hidden: jax.Array,
  kernel: Kernel,
  targets: jax.Array,
  weights: jax.Array,
  *,
  z_loss: float = 0.0,
  chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of target tokens under the logits `hidden @ kernel`, which never leave this function.

  Where the loss is differentiated, gradients are made while a chunk's logits are there, so that
  nothing of the size of the logits is kept, and no matrix product is done again. Only those asked
  for are made: a frozen kernel costs nothing. Rows are never split, so that a sharded batch stays
  where it is. Reverse-mode differentiation only.

  Args:
    hidden: [B, T, D], in the type of computation.
    kernel: [D, V], any float type, cast to hidden's; or a QuantizedKernel, which gets no gradient.
    targets: int32 [B, T].
    weights: fp32 [B, T]; 0 takes a position out.
    z_loss: coefficient of `log(Z)**2`, which keeps the logits from drifting (T5X, Mesh TensorFlow).
    chunk: target positions of each row whose fp32 logits [B, C, V] exist at a time; 0 is all of
      them. A length that it does not divide is padded.

  Returns:
    (summed loss, weighted number of positions where no logit is above the target's), fp32 scalars.
    Gradients are accumulated in fp32 and returned in the types of hidden and kernel.
  """
  if chunk < 0:
    raise ValueError(f"chunk={chunk}: expected 0 (all at once) or a number of positions")
  values, scale = kernel if isinstance(kernel, QuantizedKernel) else (kernel, None)
  return _cross_entropy(z_loss, chunk, hidden, values, scale, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(z_loss, chunk, hidden, kernel, scale, targets, weights):
  sums, _, _ = _run(z_loss, chunk, hidden, kernel, scale, targets, weights, _Wanted(False, False))
  return sums


class _Wanted(NamedTuple):
  """Which gradients a chunk has to make."""

  hidden: bool
  kernel: bool


class _Chunk(NamedTuple):
  """A chunk's tokens."""

  hidden: jax.Array  # [B, C, D]
  targets: jax.Array  # int32 [B, C]
  weights: jax.Array  # fp32 [B, C]


class _Result(NamedTuple):
  """What is kept of each position."""

  losses: jax.Array  # fp32 [B, C], not weighted
  hidden_gradient: jax.Array | None  # fp32 [B, C, D]


def _run(z_loss, chunk, hidden, kernel, scale, targets, weights, wanted: _Wanted):
  """((loss, correct), _Result over [B, T], fp32 gradient of the kernel or None)."""
  length = targets.shape[1]
  whole = _Chunk(hidden, targets, weights)
  # Integers are cast chunk by chunk: as floats they are not to lie in memory for long.
  kernel = kernel if scale is not None else kernel.astype(hidden.dtype)
  one_chunk = functools.partial(_one_chunk, z_loss, kernel, scale, wanted)
  gradient = jnp.zeros(kernel.shape, jnp.float32) if wanted.kernel else None
  carry = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), gradient)
  if chunk == 0 or chunk >= length:
    (*sums, gradient), result = one_chunk(carry, whole)
    return tuple(sums), result, gradient
  missing = -length % chunk

  def split(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

  def join(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

  (*sums, gradient), results = jax.lax.scan(one_chunk, carry, jax.tree.map(split, whole))
  return tuple(sums), jax.tree.map(join, results), gradient


def _one_chunk(z_loss, kernel, scale, wanted: _Wanted, carry, tokens: _Chunk):
  loss, correct, kernel_gradient = carry
  hidden, targets, weights = (keep_rows_apart(x) for x in tokens)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = product("BCD,DV->BCV", hidden, kernel.astype(hidden.dtype))
  logits = logits if scale is None else logits * scale
  largest = logits.max(-1)
  log_z = jnp.log(jnp.exp(logits - largest[..., None]).sum(-1)) + largest
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  losses = log_z - target_logits + z_loss * jnp.square(log_z)
  hidden_gradient = None
  if any(wanted):
    # Of loss * weight with respect to the logits. A comparison takes the target out, not a scatter:
    # it is part of the loop that makes the softmax, also where V is split over devices.
    of_softmax = (1 + 2 * z_loss * log_z) * weights
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    gradient = jnp.exp(logits - log_z[..., None]) * of_softmax[..., None]
    gradient = (gradient - jnp.where(is_target, weights[..., None], 0)).astype(hidden.dtype)
    if wanted.hidden:
      scaled = gradient if scale is None else (gradient * scale).astype(gradient.dtype)
      hidden_gradient = product("BCV,DV->BCD", scaled, kernel.astype(hidden.dtype))
    if wanted.kernel:
      kernel_gradient += product("BCD,BCV->DV", hidden, gradient)
  loss += jnp.sum(losses * weights)
  # `largest` is at hand; an argmax would be one more pass, and a slow one on CPUs.
  correct += jnp.sum((target_logits >= largest) * weights)
  return (loss, correct, kernel_gradient), _Result(losses, hidden_gradient)


def _forward(z_loss, chunk, hidden, kernel, scale, targets, weights):
  wanted = _Wanted(hidden.perturbed, kernel.perturbed)
  scale = None if scale is None else scale.value
  values = (hidden.value, kernel.value, scale, targets.value, weights.value)
  sums, result, kernel_gradient = _run(z_loss, chunk, *values, wanted)
  # Empty arrays tell the types to `_backward`.
  types = (jnp.empty((0,), hidden.value.dtype), jnp.empty((0,), kernel.value.dtype))
  return sums, (result, kernel_gradient, types)


def _backward(z_loss, chunk, residuals, cotangents) -> tuple[Any, ...]:
  result, kernel_gradient, (hidden_type, kernel_type) = residuals
  scale = cotangents[0]
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    return (None,) * 5

  def scaled(gradient, like):
    return None if gradient is None else (scale * gradient).astype(like.dtype)

  of_hidden = scaled(result.hidden_gradient, hidden_type)
  of_kernel = scaled(kernel_gradient, kernel_type)
  return of_hidden, of_kernel, None, None, scale * result.losses


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
