"""Reads a trained adapter back, over its frozen bases, ready to answer."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.interop.placement import place_all
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.slm import SLM
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.paths import run_folder
from slm_jax.training import parameters
from slm_jax.training.checkpoints import METRIC, check_base
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.recipes import AdapterRecipe

PREFIX = "checkpoint_"
# Instead of a step: the checkpoint of least held-out loss.
BEST = "best"


def checkpoint_folder(model_dir: str | epath.PathLike, step: int | str | None = None) -> epath.Path:
  """The checkpoint of `step`, the newest (None), or the one of least held-out loss (`BEST`).

  Raises:
    UserError: there is none such; the message lists what is there.
  """
  folders = {
    int(path.name.removeprefix(PREFIX)): path
    for path in run_folder(model_dir).glob(f"{PREFIX}*")
    if path.name.removeprefix(PREFIX).isdigit() and ocp.utils.is_checkpoint_finalized(path)
  }
  if not folders:
    raise UserError(
      f"MODEL_DIR={str(model_dir)!r} holds no checkpoint_<step>; train first or point to a run"
    )
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
  return json.loads(path.read_text()).get(METRIC) if path.is_file() else None


def restore_trained(checkpoint: epath.PathLike) -> dict:
  """The trained parameters of a checkpoint, nested, as host arrays; the optimiser's are not read."""
  with ocp.PyTreeCheckpointer() as reader:
    metadata = reader.metadata(epath.Path(checkpoint) / "state").item_metadata.tree
    wanted = {"params": metadata["params"]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
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
  built = recipe.build()
  if built.tokenizer is None:
    raise UserError(
      f"{recipe.language_model} has no spiece.model, without which there is no text; copy the "
      "SentencePiece model there"
    )
  trained = restore_trained(checkpoint)
  assert isinstance(built.objective, SLMObjective)
  model: SLM = built.objective.model
  shardings = None if mesh is None else _shardings(built.objective, max_samples, mesh)
  loaded = parameters.flatten(built.loaded)
  for path in parameters.flatten(trained):
    loaded.pop(path, None)
  frozen = parameters.unflatten(place_all(loaded, shardings))
  check_base(
    checkpoint, {part: parameters.fingerprint({part: tree}) for part, tree in frozen.items()}
  )
  placed = place_all(parameters.flatten(trained), shardings)
  params = parameters.merge(parameters.unflatten(placed), frozen)
  return (
    SpeechLanguageModel(
      model=model,
      params=params,
      tokenizer=built.tokenizer,
      ctc_tokenizer=built.ctc_tokenizer,
      max_samples=min(max_samples, built.max_samples or max_samples),
      mesh=mesh,
    ),
    int(checkpoint.name.removeprefix(PREFIX)),
  )


def _shardings(objective: SLMObjective, max_samples: int, mesh: Mesh) -> dict:
  """By path; shapes of parameters do not depend on the batch that the model is traced with."""
  batch = Batch.fake(
    batch_size=1, num_samples=max_samples, prompt_length=1, target_length=1, vocab_size=4
  )
  boxed = jax.eval_shape(objective.init, jax.random.key(0), batch)
  return parameters.flatten(parameter_shardings(boxed, mesh))
