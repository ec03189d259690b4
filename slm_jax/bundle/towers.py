"""The parts of a trained model in the layouts of other programs: Hugging Face Transformers, T5X."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slm_jax import interop
from slm_jax.bundle.atomic_folder import atomic_folder, check_output
from slm_jax.bundle.manifest import WEIGHTS
from slm_jax.bundle.merged import SHARD_BYTES, check_bases, check_floats
from slm_jax.errors import UserError
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.safetensors_folder import read_config
from slm_jax.interop.safetensors_writer import WEIGHTS_NAME, write_tensors
from slm_jax.interop.speech_encoder_source import OPENERS
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from slm_jax.interop.t5x_format import write_target
from slm_jax.training import parameters
from slm_jax.training.recipes import AdapterRecipe, resolve_path
from slm_jax.training.restore import restore_trained

# Of a Hugging Face folder: what its classes, feature extractors and tokenizers read. No program.
_COPIED = (".json", ".safetensors", ".model", ".txt")


def export_transformers(recipe: AdapterRecipe, checkpoint: epath.Path, output: Path | str) -> Path:
  """Writes `language_model/` and `speech_encoder/` as Transformers loads them, and `adapter.safetensors`.

  The encoder's folder is copied: it is frozen, and was one of Transformers' already. One that has no
  class there (`has_transformers_class`) is copied as it is, in this package's own layout.

  Raises:
    UserError: `output` is taken; an encoder whose weights are a .bin; bases that are int8, or are not
      those of training.
  """
  check_output(Path(output))
  encoder = _encoder_folder(recipe)
  language_model = _language_model(recipe)
  adapter = _adapter(checkpoint)
  check_bases(checkpoint, recipe.build().loaded, ())
  with atomic_folder(Path(output)) as partial:
    (partial / "speech_encoder").mkdir()
    for file in sorted(encoder.iterdir()):
      if file.suffix in _COPIED and file.is_file():
        shutil.copyfile(file, partial / "speech_encoder" / file.name)
    save_language_model(
      partial / "language_model",
      language_model.config,
      language_model.params,
      language_model.tokenizer_path,
      max_shard_bytes=SHARD_BYTES,
    )
    flat = parameters.flatten(adapter)
    write_tensors(partial, {name.replace("/", "."): x for name, x in flat.items()})
    (partial / WEIGHTS_NAME).rename(partial / WEIGHTS)
  return Path(output)


def export_t5x(recipe: AdapterRecipe, checkpoint: epath.Path, output: Path | str) -> Path:
  """Writes `language_model/`, `adapter/` and `speech_encoder/`, each with a T5X checkpoint_<step>.

  The LM's has the names of T5X's own models; the others' are those of the parameter tree.

  Raises:
    UserError: `output` is taken, or bases that are int8, have no weights or are not those of training.
  """
  check_output(Path(output))
  step = int(checkpoint.name.rpartition("_")[2])
  language_model = _language_model(recipe)
  loaded = recipe.build().loaded
  adapter = _adapter(checkpoint)
  check_bases(checkpoint, loaded, ())
  encoder = loaded.get("speech_encoder", {})
  with atomic_folder(Path(output)) as partial:
    save_t5x_checkpoint(
      partial / "language_model", language_model.config, language_model.params, step
    )
    for name, tree in (("adapter", adapter), ("speech_encoder", encoder)):
      write_target(partial / name, _arrays(tree), step)
  return Path(output)


def _arrays(tree: dict) -> Iterator[tuple[str, np.ndarray]]:
  for name, leaf in parameters.flatten(tree).items():
    yield name, np.asarray(leaf)


def _adapter(checkpoint: epath.Path) -> dict:
  """What a checkpoint has trained; raises UserError if that is more than an adapter, before anything is written."""
  trained = restore_trained(checkpoint)
  if set(trained) != {"adapter"}:
    raise UserError(
      f"{checkpoint} has trained {sorted(trained)}: only an adapter is exported in this format; use merged"
    )
  return trained["adapter"]


def _language_model(recipe: AdapterRecipe) -> Any:
  check_floats(recipe)
  if not isinstance(recipe.language_model, str):
    raise UserError(
      "AdapterRecipe.language_model is a shape; an export needs the folder of its weights"
    )
  path = recipe.language_model
  return interop.open_language_model(
    path if "://" in path else resolve_path(path), dtype=recipe.frozen_dtype
  )


def has_transformers_class(recipe: AdapterRecipe) -> bool:
  """Whether the speech encoder is one of Transformers' (USM's Conformer is not)."""
  return read_config(resolve_path(str(recipe.speech_encoder))).get("model_type") in OPENERS


def _encoder_folder(recipe: AdapterRecipe) -> Path:
  if not isinstance(recipe.speech_encoder, str):
    raise UserError(
      "AdapterRecipe.speech_encoder is a shape; an export needs the folder of its weights"
    )
  folder = resolve_path(recipe.speech_encoder)
  if not list(folder.glob("*.safetensors")):
    raise UserError(f"{folder} has no safetensors; import it with slm_jax import first")
  return folder
