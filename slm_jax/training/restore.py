"""Reads a trained adapter back, over its frozen bases, ready to answer."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from slm_jax.errors import UserError
from slm_jax.interop.placement import place_all
from slm_jax.models.slm import SLM
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.training import parameters
from slm_jax.training.checkpoints import check_base
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.recipes import AdapterRecipe

PREFIX = "checkpoint_"


def checkpoint_folder(model_dir: str | Path, step: int | None = None) -> Path:
  """The checkpoint of `step`, or the newest; raises UserError listing what is there."""
  steps = sorted(
    int(path.name.removeprefix(PREFIX))
    for path in Path(model_dir).glob(f"{PREFIX}*")
    if path.name.removeprefix(PREFIX).isdigit()
  )
  if not steps:
    raise UserError(
      f"MODEL_DIR={str(model_dir)!r} holds no checkpoint_<step>; train first or point to a run"
    )
  if step is not None and step not in steps:
    raise UserError(f"MODEL_DIR={str(model_dir)!r} has no {PREFIX}{step}; it has steps {steps}")
  return Path(model_dir).absolute() / f"{PREFIX}{steps[-1] if step is None else step}"


def restore_trained(folder: Path) -> dict:
  """The trained parameters of a checkpoint, nested, as host arrays; the optimiser's are not read."""
  with ocp.PyTreeCheckpointer() as reader:
    metadata = reader.metadata(folder / "state").item_metadata.tree
    wanted = {"params": metadata["params"]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    return reader.restore(folder / "state", args=args)["params"]


def load_speech_language_model(
  recipe: AdapterRecipe, model_dir: str | Path, *, step: int | None, max_samples: int
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
