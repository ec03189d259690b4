"""Reads a trained adapter back, over its frozen bases, ready to answer."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from slm_jax.errors import UserError
from slm_jax.interop.placement import place_all
from slm_jax.models.slm import SLM
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.training import parameters
from slm_jax.training.checkpoints import METRIC, check_base
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.recipes import AdapterRecipe

PREFIX = "checkpoint_"
# Instead of a step: the checkpoint of least held-out loss.
BEST = "best"


def checkpoint_folder(model_dir: str | Path, step: int | str | None = None) -> Path:
  """The checkpoint of `step`, the newest (None), or the one of least held-out loss (`BEST`).

  Raises:
    UserError: there is none such; the message lists what is there.
  """
  folders = {
    int(path.name.removeprefix(PREFIX)): path
    for path in Path(model_dir).absolute().glob(f"{PREFIX}*")
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


def _held_out_loss(folder: Path) -> float | None:
  path = folder / "metrics" / "metrics"
  return json.loads(path.read_text()).get(METRIC) if path.is_file() else None


def restore_trained(folder: Path) -> dict:
  """The trained parameters of a checkpoint, nested, as host arrays; the optimiser's are not read."""
  with ocp.PyTreeCheckpointer() as reader:
    metadata = reader.metadata(folder / "state").item_metadata.tree
    wanted = {"params": metadata["params"]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    return reader.restore(folder / "state", args=args)["params"]


def load_speech_language_model(
  recipe: AdapterRecipe, model_dir: str | Path, *, step: int | str | None, max_samples: int
) -> tuple[SpeechLanguageModel, int]:
  """An adapter run's model and the step it was saved at.

  Raises:
    UserError: no such checkpoint, another base than it was trained on, or an adapter of another shape.
  """
  folder = checkpoint_folder(model_dir, step)
  built = recipe.build()
  if built.tokenizer is None:
    raise UserError(
      f"{recipe.language_model} has no spiece.model, without which there is no text; copy the "
      "SentencePiece model there"
    )
  trained = restore_trained(folder)
  loaded = parameters.flatten(built.loaded)
  for path in parameters.flatten(trained):
    loaded.pop(path, None)
  frozen = parameters.unflatten(place_all(loaded, None))
  check_base(folder, {part: parameters.fingerprint({part: tree}) for part, tree in frozen.items()})
  params = parameters.merge(trained, frozen)
  assert isinstance(built.objective, SLMObjective)
  model: SLM = built.objective.model
  return (
    SpeechLanguageModel(
      model=model,
      params=jax.tree.map(jax.numpy.asarray, params),
      tokenizer=built.tokenizer,
      ctc_tokenizer=built.ctc_tokenizer,
      max_samples=min(max_samples, built.max_samples or max_samples),
    ),
    int(folder.name.removeprefix(PREFIX)),
  )
