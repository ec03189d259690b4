"""The step in which a frozen LM costs most, alone: its loss, and the gradient to what it reads.

B batch, S source length, T target length, D model width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.t5 import T5, T5Config, abstract_params
from slm_jax.training.losses import vocabulary_cross_entropy
from slm_jax.training.sharding import BATCH_SPEC, check_batch_size


class LanguageBatch(NamedTuple):
  """What the LM reads beside the embeddings; arrays, or their shapes."""

  mask: Any  # bool [B, S], True = real
  decoder_input_tokens: Any  # int32 [B, T]
  decoder_target_tokens: Any  # int32 [B, T]
  decoder_loss_weights: Any  # fp32 [B, T]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainThroughShape:
  """Sizes of a step."""

  batch_size: int
  source_length: int
  target_length: int
  loss_chunk: int = 0
  # Type of the frozen weights, unless the config makes them int8.
  weight_dtype: str = "bfloat16"


class ChipMemory(NamedTuple):
  """Bytes in one device's memory, by the compiler's own account."""

  arguments: int
  temporaries: int
  output: int


def train_through(config: T5Config, loss_chunk: int = 0) -> Callable[..., tuple]:
  """Builds `step(embeddings [B, S, D], params, batch) -> (summed loss, gradient [B, S, D])`."""

  def loss(embeddings: jax.Array, params: dict, batch: LanguageBatch) -> jax.Array:
    def forward(t5: T5):
      memory = t5.encode(embeddings, batch.mask)
      return t5.output_projection(t5.decode(memory, batch.mask, batch.decoder_input_tokens))

    projection: Any = nn.apply(forward, T5(config))({"params": params})
    hidden, kernel = projection
    targets, weights = batch.decoder_target_tokens, batch.decoder_loss_weights
    return vocabulary_cross_entropy(hidden, kernel, targets, weights, chunk=loss_chunk)[0]

  return jax.value_and_grad(loss)


def abstract_inputs(
  config: T5Config, shape: TrainThroughShape, mesh: Mesh
) -> tuple[jax.ShapeDtypeStruct, dict, LanguageBatch]:
  """The step's arguments on a mesh, weights by the rules of `partitioning`; no memory is used."""
  check_batch_size(shape.batch_size, mesh)
  boxed = abstract_params(config)

  def weight(leaf, sharding) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if config.weights == "int8" else jnp.dtype(shape.weight_dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

  params = jax.tree.map(weight, nn.unbox(boxed), parameter_shardings(boxed, mesh))
  rows = NamedSharding(mesh, BATCH_SPEC)

  def array(dtype, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shape.batch_size, *sizes), dtype, sharding=rows)

  source, target = shape.source_length, shape.target_length
  batch = LanguageBatch(
    array(jnp.bool_, source),
    array(jnp.int32, target),
    array(jnp.int32, target),
    array(jnp.float32, target),
  )
  return array(jnp.float32, source, config.emb_dim), params, batch


def lower_train_through(config: T5Config, shape: TrainThroughShape, mesh: Mesh):
  """The step traced for a mesh, whose devices need not be there; `.compile()` does the rest."""
  arguments = abstract_inputs(config, shape, mesh)
  rows, everywhere = NamedSharding(mesh, BATCH_SPEC), NamedSharding(mesh, PartitionSpec())
  step = jax.jit(train_through(config, shape.loss_chunk), out_shardings=(everywhere, rows))
  with jax.set_mesh(mesh):
    return step.lower(*arguments)


def chip_memory(compiled) -> ChipMemory:
  """What a compiled program takes of each device."""
  found = compiled.memory_analysis()
  return ChipMemory(
    found.argument_size_in_bytes, found.temp_size_in_bytes, found.output_size_in_bytes
  )
