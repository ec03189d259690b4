"""A training run as shapes, types and shardings: everything but memory and data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slm_jax.batch import Batch, LMRows
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.training import parameters
from slm_jax.training.config import DatasetConfig, TrainConfig
from slm_jax.training.frame_cache import without_encoder
from slm_jax.training.frozen_frames import check_cacheable
from slm_jax.training.objectives import RetrieverObjective, SLMObjective
from slm_jax.training.optimizer import make_optimizer
from slm_jax.training.recipes import AdapterRecipe, Built
from slm_jax.training.setup import model_info
from slm_jax.training.sharding import BATCH_SPEC, check_batch_size
from slm_jax.training.step import TrainState, init_state


@dataclasses.dataclass(frozen=True)
class AbstractRun:
  """A run on a mesh whose devices need not be there.

  Attributes:
    built: the recipe, with weights unread or absent.
    optimizer: of the trained parameters.
    state, frozen, batch: arguments of the train step; every leaf is a ShapeDtypeStruct with its
      sharding. The batch is the longest that the run declares.
    mesh: where they lie.
  """

  built: Built
  optimizer: optax.GradientTransformation
  state: TrainState
  frozen: dict
  batch: Batch
  mesh: Mesh

  @property
  def params(self) -> dict:
    """Trained and frozen together."""
    return parameters.merge(self.state.params, self.frozen)

  @property
  def info(self) -> str:
    """The text that a run on this mesh writes to model-info.txt."""
    return model_info(self.params, set(parameters.flatten(self.state.params)))


def abstract_batch(lengths: dict[str, int], batch_size: int, mesh: Mesh) -> Batch:
  """The batch of a run's declared lengths: "audio" in samples, "inputs" and "targets" in tokens."""
  rows = NamedSharding(mesh, BATCH_SPEC)

  def array(dtype, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *sizes), dtype, sharding=rows)

  def tokens(name: str, dtype=jnp.int32) -> jax.ShapeDtypeStruct | None:
    return array(dtype, lengths[name]) if name in lengths else None

  return Batch(
    audio=tokens("audio", jnp.int16),
    audio_lengths=array(jnp.int32) if "audio" in lengths else None,
    encoder_input_tokens=tokens("inputs"),
    decoder_input_tokens=tokens("targets"),
    decoder_target_tokens=tokens("targets"),
    decoder_loss_weights=tokens("targets", jnp.float32),
  )


def abstract_run(config: TrainConfig, mesh: Mesh) -> AbstractRun:
  """The arguments of a run's train step.

  Raises:
    UserError: the batch does not divide over the mesh, or a base cannot be opened.
  """
  dataset = config.train_dataset
  together = getattr(dataset, "examples_per_lm_row", 1)
  check_batch_size(dataset.batch_size, mesh, config.num_microbatches, together)
  built = config.model.build()
  batch = abstract_batch(dataset.task_feature_lengths, dataset.batch_size, mesh)
  if isinstance(dataset, DatasetConfig) and together > 1:
    longest = dataset.length_buckets[-1]
    rows = LMRows(together, longest["lm_inputs"], longest["lm_targets"])
    batch = dataclasses.replace(batch, lm_rows=rows)
  if config.frame_cache is not None:
    check_cacheable(config.model)
    batch, built = _cached_frames(batch, built), without_encoder(built)
  row = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
  boxed = jax.eval_shape(built.objective.init, jax.random.key(0), row)
  shardings = parameters.flatten(parameter_shardings(boxed, mesh))
  shapes = parameters.flatten(nn.unbox(boxed))
  trained, frozen = parameters.split(parameters.unflatten(shapes), built.trainable)
  loaded = parameters.flatten(built.loaded)

  def place(path: str, leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings[path])

  def stored(path: str, leaf: Any) -> Any:
    if path in loaded:
      return loaded[path].dtype
    return leaf.dtype if leaf.dtype == jnp.int8 else _float_type(config.model, path, leaf)

  flat = parameters.flatten(trained)
  trained = parameters.unflatten({k: place(k, v, jnp.float32) for k, v in flat.items()})
  flat = parameters.flatten(frozen)
  frozen = parameters.unflatten({k: place(k, v, stored(k, v)) for k, v in flat.items()})
  optimizer = make_optimizer(config.optimizer, config.total_steps)
  state = _abstract_state(trained, optimizer, mesh, config.optimizer.state_memory)
  return AbstractRun(built, optimizer, state, frozen, batch, mesh)


def _cached_frames(batch: Batch, built: Built) -> Batch:
  """The batch with the frames of its audio in place of it."""
  assert isinstance(built.objective, SLMObjective | RetrieverObjective)
  frames, _ = jax.eval_shape(
    lambda audio, lengths: built.objective.model.init_with_output(  # pyright: ignore
      jax.random.key(0), audio, lengths, method="frozen_frames"
    )[0],
    batch.audio,
    batch.audio_lengths,
  )
  rows = batch.audio.sharding  # pyright: ignore[reportOptionalMemberAccess]
  return batch.replace(  # pyright: ignore[reportAttributeAccessIssue]
    audio=None,
    speech_frames=jax.ShapeDtypeStruct(frames.shape, frames.dtype, sharding=rows),
    speech_frame_lengths=batch.audio_lengths,
  )


def _float_type(recipe: Any, path: str, leaf: Any) -> Any:
  """What a frozen float is stored as where a base is a shape without weights."""
  if not isinstance(recipe, AdapterRecipe):
    return leaf.dtype
  dtype = recipe.frozen_dtype
  if path.startswith("speech_encoder/"):
    dtype = recipe.frozen_speech_encoder_dtype or dtype
  if dtype != "int8":
    return jnp.dtype(dtype)
  # Scales stay as they are made; norms and biases as published weights of this size have them.
  return leaf.dtype if path.endswith("_scale") else jnp.dtype("bfloat16")


def _abstract_state(
  trained: dict, optimizer: optax.GradientTransformation, mesh: Mesh, memory: str
) -> TrainState:
  """As `setup.prepare` places it: moments like their parameters, all else on every device."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  state = jax.eval_shape(lambda params: init_state(params, optimizer, 0), trained)

  def like(leaf, parameter):
    sharding = parameter.sharding if leaf.shape == parameter.shape else everywhere
    if memory != "device" and leaf.ndim:
      sharding = sharding.with_memory_kind(memory)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  def replicated(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

  opt_state = optax.tree_utils.tree_map_params(
    optimizer, like, state.opt_state, trained, transform_non_params=replicated
  )
  rest = dataclasses.replace(state, params={}, opt_state=())
  rest = jax.tree.map(replicated, rest)
  return dataclasses.replace(rest, params=trained, opt_state=opt_state)
