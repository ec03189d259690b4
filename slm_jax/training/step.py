"""The train state and the train step: gradient of the trained leaves only."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from slm_jax.batch import Batch
from slm_jax.training import parameters
from slm_jax.training.objectives import Objective

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
  """All that training changes: what a checkpoint holds, beside the data position."""

  step: jax.Array  # int32 [], updates done so far
  params: dict  # trained parameters only, fp32
  opt_state: optax.OptState
  rng: jax.Array  # uint32 key data; never advanced, each step folds its number in


def init_state(params: dict, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  """A state at step 0 over trained `params`."""
  rng = jax.random.key_data(jax.random.key(seed))
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng)


def _split_batch(batch: Batch, count: int) -> Batch:
  """[B, ...] -> [count, B / count, ...]; microbatch i takes every count-th row of the LM: shards stay in place."""
  together = batch.lm_rows.examples if batch.lm_rows else 1

  def split(x: jax.Array) -> jax.Array:
    rows = x.reshape(-1, count, together, *x.shape[1:]).swapaxes(0, 1)
    return rows.reshape(count, -1, *x.shape[1:])

  return jax.tree.map(split, batch)


def _on_device(x: jax.Array) -> jax.Array:
  """What lies in the host's memory is fetched; where results go is for the caller's shardings to say."""
  if jax.typeof(x).memory_space == jax.memory.Space.Host:
    return jax.device_put(x, jax.memory.Space.Device)
  return x


def make_train_step(
  objective: Objective, optimizer: optax.GradientTransformation, num_microbatches: int = 1
) -> Callable[[TrainState, dict, Batch], tuple[TrainState, Metrics]]:
  """Builds `step(state, frozen, batch) -> (state, metrics)`.

  Losses are summed over the batch and divided by its total weight once, so that microbatches change nothing but memory
  and rounding. `frozen` is a plain argument: it has no gradient and no state. Where loss or gradient is not finite,
  the step counts and nothing else changes: neither parameters nor the optimizer's state.
  """

  def loss(trained: dict, frozen: dict, batch: Batch, rng: jax.Array):
    return objective.loss(parameters.merge(trained, frozen), batch, rng)

  def gradients(trained, frozen, batch, rng):
    if num_microbatches == 1:
      return jax.grad(loss, has_aux=True)(trained, frozen, batch, rng)

    def add(total, numbered):
      index, micro = numbered
      update = jax.grad(loss, has_aux=True)(trained, frozen, micro, jax.random.fold_in(rng, index))
      return jax.tree.map(jnp.add, total, update), None

    micros = _split_batch(batch, num_microbatches)
    first = jax.tree.map(lambda x: x[0], micros)
    shapes = jax.eval_shape(jax.grad(loss, has_aux=True), trained, frozen, first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(num_microbatches), micros))[0]

  def step(state: TrainState, frozen: dict, batch: Batch) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    grads, sums = gradients(state.params, frozen, batch, rng)
    weight = jnp.maximum(sums["weight"], 1.0)
    before = jax.tree.map(_on_device, state.opt_state)
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt_state = optimizer.update(grads, before, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": sums["loss"] / weight, "grad_norm": optax.global_norm(grads)}
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, opt_state),
      (state.params, before),
    )
    if "correct" in sums:
      metrics["accuracy"] = sums["correct"] / weight
    metrics["target_tokens"] = sums["weight"]
    if "ctc_loss" in sums:
      metrics["ctc_loss"] = sums["ctc_loss"] / weight
    for name in ("audio_seconds", "frames_lost"):
      if name in sums:
        metrics[name] = sums[name]
    new_state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    return new_state, metrics

  return step
