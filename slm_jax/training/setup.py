"""Everything that happens before the first step: weights, placement, the model report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.interop.placement import place_all
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.training import parameters
from slm_jax.training.recipes import Built
from slm_jax.training.step import TrainState, init_state


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A run's arrays on the mesh."""

  state: TrainState
  frozen: dict
  fingerprints: dict[str, str]  # top-level part -> fingerprint of its frozen weights
  info: str  # the text of model-info.txt
  trained_count: int
  frozen_count: int


def abstract_batch(batch: Batch) -> Batch:
  """Shapes and dtypes of a batch."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def prepare(
  built: Built,
  batch: Batch,
  optimizer: optax.GradientTransformation,
  mesh,
  seed: int,
  *,
  state_memory: str = "device",
) -> Prepared:
  """Initialises the trained part, reads the frozen one, places both.

  Of weights that lie in files, every process reads the slices of its own devices alone.

  Raises:
    UserError: loaded weights do not fit the module, or parts of the tree have neither weights nor training.
  """
  key = jax.random.key(seed)
  boxed = jax.eval_shape(built.objective.init, key, abstract_batch(batch))
  shardings = parameters.flatten(parameter_shardings(boxed, mesh))
  shapes = parameters.flatten(nn.unbox(boxed))
  trained_paths, _ = (
    parameters.flatten(t) for t in parameters.split(parameters.unflatten(shapes), built.trainable)
  )
  loaded = parameters.flatten(built.loaded)
  _check_loaded(loaded, shapes, trained_paths)

  if whole := [path for path in trained_paths if shapes[path].dtype == jnp.int8]:
    raise UserError(
      f"train.trainable={built.trainable!r} asks to train {whole[0]}, which is int8; int8 weights stay "
      "frozen, choose another frozen_dtype"
    )

  def wanted(path: str):
    # Optimisers need fp32; frozen weights stay in the type they were loaded in.
    return loaded[path].astype(np.float32) if path in trained_paths else loaded[path]

  placed = place_all({path: wanted(path) for path in loaded}, shardings)
  # Only leaves that have no loaded value are kept, so XLA never materialises a second copy of the bases.
  fresh_paths = [path for path in shapes if path not in loaded]

  @jax.jit
  def init_fresh():
    flat = parameters.flatten(nn.unbox(built.objective.init(key, _zeros(batch))))
    return {path: flat[path] for path in fresh_paths}

  finished = built.finish(parameters.unflatten(init_fresh()), parameters.unflatten(placed))
  fresh = {
    path: np.asarray(leaf).astype(np.float32) for path, leaf in parameters.flatten(finished).items()
  }
  placed |= place_all(fresh, shardings)
  trained = parameters.unflatten({path: placed[path] for path in trained_paths})
  frozen = parameters.unflatten({p: placed[p] for p in shapes if p not in trained_paths})
  fingerprints = {part: parameters.fingerprint({part: tree}) for part, tree in frozen.items()}
  state = _replicate_scalars(init_state(trained, optimizer, seed), mesh)
  if state_memory != "device":
    state = dataclasses.replace(state, opt_state=_moved(state.opt_state, state_memory))
  return Prepared(
    state=state,
    frozen=frozen,
    fingerprints=fingerprints,
    info=model_info(parameters.merge(trained, frozen), set(trained_paths)),
    trained_count=parameters.count(trained),
    frozen_count=parameters.count(frozen) if frozen else 0,
  )


def _zeros(batch: Batch) -> Batch:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)


def _replicate_scalars(state: TrainState, mesh) -> TrainState:
  """Step, RNG and optimiser counters live on every device; moments already follow their parameters."""
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def one(x: jax.Array) -> jax.Array:
    return (
      x if isinstance(x.sharding, jax.sharding.NamedSharding) else jax.device_put(x, replicated)
    )

  return jax.tree.map(one, state)


def _moved(opt_state, memory: str):
  """Moments to another memory; counters stay, because they cost nothing."""
  return jax.tree.map(
    lambda x: jax.device_put(x, x.sharding.with_memory_kind(memory)) if x.ndim else x, opt_state
  )


def _check_loaded(loaded: dict, shapes: dict, trained_paths: dict) -> None:
  for path, leaf in loaded.items():
    if path not in shapes:
      raise UserError(
        f"loaded weight {path} {leaf.shape} has no place in the model; wrong config or folder?"
      )
    if tuple(leaf.shape) != tuple(shapes[path].shape):
      raise UserError(
        f"loaded weight {path} has shape {tuple(leaf.shape)}, the model expects {tuple(shapes[path].shape)}"
      )
  missing = [path for path in shapes if path not in loaded and path not in trained_paths]
  if missing:
    raise UserError(
      f"{len(missing)} parameters are neither loaded nor trained, first {missing[0]}; "
      "widen train.trainable or load a complete base"
    )


def model_info(params: dict, trained_paths: set[str]) -> str:
  """The table of model-info.txt: every parameter's shape, dtype, sharding, trained or frozen; totals."""
  flat = parameters.flatten(params)
  width = max(len(path) for path in flat)
  lines = []
  for path, leaf in flat.items():
    kind = "trained" if path in trained_paths else "frozen"
    spec = tuple(leaf.sharding.spec)
    lines.append(f"{path:<{width}}  {str(leaf.shape):<20} {str(leaf.dtype):<9} {kind:<8} {spec}")
  total = parameters.count(params)
  trained = sum(int(np.prod(flat[p].shape)) for p in trained_paths)
  for part, tree in params.items():
    lines.append(f"total {part}: {parameters.count(tree):,}")
  lines.append(f"total: {total:,}; trained: {trained:,} ({100 * trained / total:.2f} %)")
  return "\n".join(lines) + "\n"


def write_text(path: epath.Path, text: str) -> None:
  """Writes a small file atomically, from the first process only."""
  if jax.process_index() == 0:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
