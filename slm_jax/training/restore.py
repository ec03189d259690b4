"""Reads a trained adapter back, over its frozen bases, ready to answer."""

import json
import math

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.interop.placement import place_all
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.slm import SLM
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.paths import run_folder
from slm_jax.training import parameters
from slm_jax.training.checkpoints import METRIC, check_fingerprints, saved_info
from slm_jax.training.objectives import Objective, SLMObjective
from slm_jax.training.recipes import AdapterRecipe, Built

PREFIX = "checkpoint_"
# Instead of a step: the checkpoint of least held-out loss.
BEST = "best"


def checkpoint_folders(model_dir: str | epath.PathLike) -> dict[int, epath.Path]:
  """Step → finished checkpoint, by step. Raises UserError if there is none."""
  folders = {
    int(path.name.removeprefix(PREFIX)): path
    for path in run_folder(model_dir).glob(f"{PREFIX}*")
    if path.name.removeprefix(PREFIX).isdigit() and ocp.utils.is_checkpoint_finalized(path)
  }
  if not folders:
    raise UserError(
      f"MODEL_DIR={str(model_dir)!r} holds no checkpoint_<step>; train first or point to a run"
    )
  return dict(sorted(folders.items()))


def checkpoint_folder(model_dir: str | epath.PathLike, step: int | str | None = None) -> epath.Path:
  """The checkpoint of `step`, the newest (None), or the one of least held-out loss (`BEST`).

  Raises:
    UserError: there is none such; the message lists what is there.
  """
  folders = checkpoint_folders(model_dir)
  if step is None:
    return folders[max(folders)]
  if step == BEST:
    losses = {path: loss for path in folders.values() if (loss := _held_out_loss(path)) is not None}
    if not losses:
      raise UserError(
        f"MODEL_DIR={str(model_dir)!r} has no held-out losses to find the best checkpoint by; train with "
        "train.eval_dataset, or give a step"
      )
    return min(losses, key=lambda path: losses[path])
  if step not in folders:
    raise UserError(
      f"MODEL_DIR={str(model_dir)!r} has no {PREFIX}{step}; it has steps {sorted(folders)}"
    )
  return folders[step]  # pyright: ignore[reportArgumentType]


def _held_out_loss(checkpoint: epath.Path) -> float | None:
  path = checkpoint / "metrics" / "metrics"
  loss = json.loads(path.read_text()).get(METRIC) if path.is_file() else None
  return None if loss is None or math.isnan(loss) else loss


def restore_trained(checkpoint: epath.PathLike, like: dict | None = None) -> dict:
  """The trained parameters of a checkpoint, nested; the optimiser's state is not read.

  Args:
    checkpoint: its folder.
    like: arrays in whose places those of the checkpoint are put; None reads host arrays.

  Raises:
    UserError: other names or shapes than those of `like`.
  """
  with ocp.PyTreeCheckpointer() as reader:
    metadata = reader.metadata(epath.Path(checkpoint) / "state").item_metadata.tree
    wanted = {"params": metadata["params"]}
    if like is None:
      restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    else:
      found, expected = (parameters.flatten(tree) for tree in (wanted["params"], like))
      _check_same(found, expected, str(checkpoint))
      wanted = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, like)}
      restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    return reader.restore(epath.Path(checkpoint) / "state", args=args)["params"]


def load_speech_language_model(
  recipe: AdapterRecipe,
  model_dir: str | epath.PathLike,
  *,
  step: int | str | None,
  max_samples: int,
  mesh: Mesh | None = None,
) -> tuple[SpeechLanguageModel, int]:
  """An adapter run's model, spread over `mesh` if there is one, and the step it was saved at.

  Raises:
    UserError: no such checkpoint, another base than it was trained on, or an adapter of another shape.
  """
  checkpoint = checkpoint_folder(model_dir, step)
  model = assemble(
    recipe,
    restore_trained(checkpoint),
    what=str(checkpoint),
    fingerprints=saved_info(checkpoint)["frozen"],
    max_samples=max_samples,
    mesh=mesh,
  )
  return model, int(checkpoint.name.removeprefix(PREFIX))


def assemble(
  recipe: AdapterRecipe,
  trained: dict,
  *,
  what: str,
  fingerprints: dict[str, str] | None,
  max_samples: int,
  mesh: Mesh | None = None,
) -> SpeechLanguageModel:
  """Trained parameters between the recipe's bases.

  Args:
    recipe: of the model.
    trained: nested, as host arrays.
    what: how messages call them.
    fingerprints: of the frozen parts that they were trained over; None if that has been checked.
    max_samples: longest audio of one call.
    mesh: over which the model is spread.

  Raises:
    UserError: a base that cannot be opened or is another, or parameters that are not the model's.
  """
  built = recipe.build()
  if built.tokenizer is None:
    raise UserError(
      f"{recipe.language_model} has no spiece.model, without which there is no text; copy the "
      "SentencePiece model there"
    )
  assert isinstance(built.objective, SLMObjective)
  model: SLM = built.objective.model
  params = _placed(built, trained, what=what, fingerprints=fingerprints, mesh=mesh)
  return SpeechLanguageModel(
    model=model,
    params=params,
    tokenizer=built.tokenizer,
    ctc_tokenizer=built.ctc_tokenizer,
    max_samples=min(max_samples, built.max_samples or max_samples),
    mesh=mesh,
  )


def place_parameters(built: Built, trained: dict, checkpoint: epath.Path) -> dict:
  """All parameters of a recipe: the checkpoint's `trained` ones, nested, and the frozen ones below them.

  Raises:
    UserError: parameters that are not the model's, or another base than they were trained over.
  """
  frozen = saved_info(checkpoint)["frozen"]
  return _placed(built, trained, what=str(checkpoint), fingerprints=frozen, mesh=None)


def _placed(
  built: Built,
  trained: dict,
  *,
  what: str,
  fingerprints: dict[str, str] | None,
  mesh: Mesh | None,
) -> dict:
  """As of `assemble`."""
  boxed = _boxed(built.objective)
  _check_trained(trained, parameters.flatten(nn.unbox(boxed)), built.trainable, what)
  shardings = None if mesh is None else parameters.flatten(parameter_shardings(boxed, mesh))
  loaded = parameters.flatten(built.loaded)
  for path in parameters.flatten(trained):
    loaded.pop(path, None)
  frozen = parameters.unflatten(place_all(loaded, shardings))
  if fingerprints is not None:
    found = {part: parameters.fingerprint({part: tree}) for part, tree in frozen.items()}
    check_fingerprints(what, fingerprints, found)
  placed = place_all(parameters.flatten(trained), shardings)
  return parameters.merge(parameters.unflatten(placed), frozen)


def _boxed(objective: Objective) -> dict:
  """Shapes of all parameters, with their axes; they do not depend on the batch that the model is traced with."""
  batch = Batch.fake(
    batch_size=1, num_samples=16_000, prompt_length=1, target_length=1, vocab_size=4
  )
  return jax.eval_shape(objective.init, jax.random.key(0), batch)


def _check_trained(trained: dict, shapes: dict, trainable: str, what: str) -> None:
  """Raises UserError unless the parameters are those that the model trains, in its shapes."""
  wanted = parameters.flatten(parameters.split(parameters.unflatten(shapes), trainable)[0])
  _check_same(parameters.flatten(trained), wanted, what)


def _check_same(found: dict, wanted: dict, what: str) -> None:
  """Raises UserError, which calls `found` `what`, unless both have the same paths and shapes."""
  for path in sorted(wanted.keys() | found.keys()):
    if path not in found:
      raise UserError(f"{what} has no {path}, which the model's config asks for")
    if path not in wanted:
      raise UserError(f"{what} has {path}, for which the model's config has no place")
    if tuple(found[path].shape) != tuple(wanted[path].shape):
      raise UserError(
        f"{what}: {path} has the shape {tuple(found[path].shape)}, the model's config asks for "
        f"{tuple(wanted[path].shape)}"
      )
