"""Everything of a trained model in one folder of safetensors: encoder, adapter and LM.

`model.safetensors` (or shards with an index) names tensors by their path in the parameter tree, joined
with dots; `config.json` holds the shapes; `spiece.model` is the LM's tokenizer, `ctc_tokenizer/` the
files of the encoder's; `SHA256SUMS` has the checksums of them all.
"""

import dataclasses
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

import slm_jax
from slm_jax.batch import Batch
from slm_jax.bundle.atomic_folder import atomic_folder, check_output
from slm_jax.bundle.checksums import check_sums, write_sums
from slm_jax.errors import UserError
from slm_jax.interop.config_record import config_from_record
from slm_jax.interop.ctc_tokenizer import open_ctc_tokenizer, tokenizer_files
from slm_jax.interop.placement import place_all
from slm_jax.interop.safetensors_folder import (
  CONFIG_NAME,
  TOKENIZER_NAME,
  TensorFolder,
  open_tokenizer,
  read_config,
)
from slm_jax.interop.safetensors_writer import write_tensors
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.slm import SLM, SLMConfig
from slm_jax.models.speech_encoders.families import FAMILIES, family_of
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.models.t5_config import T5Config
from slm_jax.training import parameters
from slm_jax.training.checkpoints import check_base
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.recipes import AdapterRecipe, resolve_path
from slm_jax.training.restore import restore_trained

FORMAT, FORMAT_VERSION = "slm_jax.merged", 1
SHARD_BYTES = 5 * 2**30
CTC_FOLDER = "ctc_tokenizer"


def export_merged(
  recipe: AdapterRecipe,
  checkpoint: epath.Path,
  output: Path | str,
  *,
  max_samples: int,
  instructions: dict[str, str],
  max_shard_bytes: int = SHARD_BYTES,
) -> Path:
  """Writes the folder of `…/checkpoint_<step>`; the bases pass through memory a tensor at a time.

  Raises:
    UserError: `output` is taken, or bases that are int8, have no weights or are not those of training.
  """
  check_floats(recipe)
  check_output(Path(output))
  built = recipe.build()
  assert isinstance(built.objective, SLMObjective)
  config = built.objective.model.config
  trained = parameters.flatten(restore_trained(checkpoint))
  check_bases(checkpoint, built.loaded, trained)
  flat = parameters.flatten(built.loaded) | trained
  tensors: dict[str, Any] = {name.replace("/", "."): flat[name] for name in sorted(flat)}
  record = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "slm_jax": slm_jax.__version__,
    "step": int(checkpoint.name.rpartition("_")[2]),
    "max_samples": min(max_samples, built.max_samples or max_samples),
    "instructions": instructions,
    "speech_first": config.speech_first,
    "speech_encoder": {
      "family": family_of(config.speech_encoder),
      **dataclasses.asdict(config.speech_encoder),
    },
    "adapter": dataclasses.asdict(config.adapter),
    "language_model": dataclasses.asdict(config.language_model),
  }
  with atomic_folder(Path(output)) as partial:
    write_tensors(partial, tensors, max_shard_bytes=max_shard_bytes)
    if built.tokenizer is not None:
      (partial / TOKENIZER_NAME).write_bytes(built.tokenizer.serialized_model_proto())
    if built.ctc_tokenizer is not None:
      (partial / CTC_FOLDER).mkdir()
      for file in tokenizer_files(resolve_path(str(recipe.speech_encoder))):
        shutil.copyfile(file, partial / CTC_FOLDER / file.name)
    (partial / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    write_sums(partial)
  return Path(output)


def check_bases(checkpoint: epath.Path, loaded: dict, trained: Collection[str]) -> None:
  """Raises UserError unless a checkpoint was trained over these bases; one tensor is in memory at a time.

  Args:
    checkpoint: of the run.
    loaded: nested {speech_encoder, language_model}, of arrays or of parameters that lie in files.
    trained: paths of what the checkpoint holds instead of them.
  """
  frozen = {path: x for path, x in parameters.flatten(loaded).items() if path not in trained}
  parts = parameters.unflatten(frozen)
  check_base(checkpoint, {p: parameters.fingerprint({p: tree}) for p, tree in parts.items()})


def is_merged(folder: Path) -> bool:
  """Whether a folder's config.json is of this format."""
  return (folder / CONFIG_NAME).is_file() and read_config(folder).get("format") == FORMAT


def load_merged(
  path: Path | str, *, mesh: Mesh | None = None
) -> tuple[SpeechLanguageModel, dict[str, str]]:
  """The model of a merged folder, and its instructions by name.

  Raises:
    UserError: the folder is damaged, or its weights are not those of its config.
  """
  folder = Path(path)
  read = [CONFIG_NAME, TOKENIZER_NAME]
  for pattern in ("model*.safetensors*", f"{CTC_FOLDER}/*"):
    read += [file.relative_to(folder).as_posix() for file in sorted(folder.glob(pattern))]
  check_sums(folder, read)
  record = read_config(folder)
  if record.get("format") != FORMAT or record.get("format_version") != FORMAT_VERSION:
    raise UserError(
      f"{folder / CONFIG_NAME}: format is {record.get('format')!r}, version "
      f"{record.get('format_version')!r}; expected {FORMAT!r}, {FORMAT_VERSION}"
    )
  try:
    config = _config(record)
    max_samples, instructions = int(record["max_samples"]), dict(record["instructions"])
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"{folder / CONFIG_NAME} does not describe a merged model: {error}") from error
  model = SLM(config)
  row = Batch.fake(batch_size=1, num_samples=16_000, prompt_length=1, target_length=1, vocab_size=4)
  boxed = jax.eval_shape(SLMObjective(model).init, jax.random.key(0), row)
  shapes = parameters.flatten(nn.unbox(boxed))
  tensors = TensorFolder(folder)
  names = {path: path.replace("/", ".") for path in shapes}
  tensors.check({names[path]: tuple(leaf.shape) for path, leaf in shapes.items()})
  shardings = None if mesh is None else parameters.flatten(parameter_shardings(boxed, mesh))
  placed = place_all({path: tensors.parameter(name) for path, name in names.items()}, shardings)
  ctc = folder / CTC_FOLDER
  loaded = SpeechLanguageModel(
    model=model,
    params=parameters.unflatten(placed),
    tokenizer=open_tokenizer(folder / TOKENIZER_NAME),
    ctc_tokenizer=open_ctc_tokenizer(ctc) if ctc.is_dir() else None,
    max_samples=max_samples,
    mesh=mesh,
  )
  return loaded, instructions


def check_floats(recipe: AdapterRecipe) -> None:
  """Raises UserError if the recipe's bases are quantised as they are read."""
  for name in ("frozen_dtype", "frozen_speech_encoder_dtype"):
    if getattr(recipe, name) == "int8":
      raise UserError(
        f"AdapterRecipe.{name} is int8: a folder of weights holds floats; bind it to another type for the export"
      )


def _config(record: dict[str, Any]) -> SLMConfig:
  encoder = dict(record["speech_encoder"])
  family = FAMILIES[encoder.pop("family")]
  return SLMConfig(
    speech_encoder=config_from_record(family.config, encoder),
    adapter=config_from_record(AdapterConfig, record["adapter"]),
    language_model=config_from_record(T5Config, record["language_model"]),
    speech_first=bool(record["speech_first"]),
  )
