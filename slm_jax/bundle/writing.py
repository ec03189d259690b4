"""Exports the trained part of a checkpoint as a bundle."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

import slm_jax
from slm_jax.bundle.atomic_folder import atomic_folder
from slm_jax.bundle.card import card
from slm_jax.bundle.checksums import write_sums
from slm_jax.bundle.manifest import CARD, CONFIG, WEIGHTS, Base, Manifest, manifest_json
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_writer import WEIGHTS_NAME, write_tensors
from slm_jax.models.t5_config import T5Config
from slm_jax.training import parameters
from slm_jax.training.checkpoints import saved_info
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import restore_trained


def export_bundle(
  recipe: AdapterRecipe,
  checkpoint: epath.Path,
  output: Path | str,
  *,
  max_samples: int,
  instructions: dict[str, str],
  licence: str = "",
  base_models: Sequence[str] = (),
) -> Path:
  """Writes the bundle of `…/checkpoint_<step>`; the folder appears when it is whole.

  Args:
    recipe: what was trained.
    checkpoint: of the run.
    output: folder, which must not exist or be empty.
    max_samples: longest audio of one call.
    instructions: as of `Manifest`.
    licence: SPDX name of the adapter's licence.
    base_models: the bases' ids on a model hub, for the card.

  Raises:
    UserError: `output` is taken, or the recipe's bases are shapes without weights, or were trained as a whole.
  """
  output = Path(output)
  step = int(checkpoint.name.rpartition("_")[2])
  manifest = Manifest(
    adapter=recipe.adapter,
    speech_encoder=_base(recipe, checkpoint, "speech_encoder"),
    language_model=_base(recipe, checkpoint, "language_model"),
    speech_first=recipe.speech_first,
    speech_encoder_dtype=recipe.speech_encoder_dtype,
    language_model_dtype=recipe.language_model_dtype,
    trainable=recipe.trainable,
    lora_rank=recipe.lora_rank,
    max_samples=max_samples,
    instructions=instructions,
    step=step,
    slm_jax=slm_jax.__version__,
  )
  trained = restore_trained(checkpoint)
  with atomic_folder(output) as partial:
    flat = parameters.flatten(trained)
    write_tensors(partial, {name.replace("/", "."): np.asarray(x) for name, x in flat.items()})
    (partial / WEIGHTS_NAME).rename(partial / WEIGHTS)
    (partial / CONFIG).write_text(manifest_json(manifest), "utf-8")
    scores = _scores(checkpoint.parent, step)
    text = card(manifest, trained, licence=licence, scores=scores, base_models=base_models)
    (partial / CARD).write_text(text, "utf-8")
    write_sums(partial)
  return output


def _base(recipe: AdapterRecipe, checkpoint: epath.Path, part: str) -> Base:
  name = getattr(recipe, part)
  if not isinstance(name, str):
    kind = "a shape" if isinstance(name, T5Config) else "the shape of an encoder"
    raise UserError(f"AdapterRecipe.{part} is {kind}; a bundle needs the folder of its weights")
  dtype = recipe.frozen_dtype
  if part == "speech_encoder":
    dtype = recipe.frozen_speech_encoder_dtype or dtype
  frozen = saved_info(checkpoint)["frozen"]
  if part not in frozen:
    raise UserError(f"{checkpoint} has trained the whole {part}: export it with --format=merged")
  return Base(name=name, fingerprint=frozen[part], dtype=dtype)


def _scores(model_dir: epath.Path, step: int) -> dict[str, dict[str, float]]:
  """Task → metric → value of the model's own scores at this step, if `slm_jax eval` took them."""
  found: dict[str, dict[str, float]] = {}
  for path in sorted((model_dir / "inference_eval").glob("*-metrics.jsonl")):
    for line in path.read_text().splitlines():
      record: dict[str, Any] = json.loads(line)
      if record["step"] == step:
        scores = record["scores"]["slm"]
        found[record["task"]] = {name: score["value"] for name, score in scores.items()}
  return found
