"""T5-family language models from any source: a Hugging Face folder or a T5X checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from slm_jax.errors import UserError
from slm_jax.interop import safetensors_folder as folders
from slm_jax.interop import t5x_checkpoint, t5x_format
from slm_jax.interop.hf_t5 import open_hf_language_model
from slm_jax.interop.placement import place_all
from slm_jax.interop.quantized_parameter import QuantizedParameter, quantized
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.partitioning import BATCH_AXES, RULES, parameter_shardings
from slm_jax.models.t5 import T5Config, abstract_params

REMOTE_PREFIX = "gs://"
_MESH_AXES = {*BATCH_AXES, *(axis for axis in RULES.values() if axis is not None)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLanguageModel:
  """A model whose weights still lie in its files.

  Attributes:
    config: shape of the model.
    parameters: by path, T5X's names; `QuantizedParameter`s among them where asked for.
    tokenizer_path: its SentencePiece model, or a tokenizer.json that holds one; None if there is none.
  """

  config: T5Config
  parameters: dict[str, StoredParameter | QuantizedParameter]
  tokenizer_path: Path | None

  @property
  def params(self) -> dict:
    """The parameters as a nested dict."""
    return traverse_util.unflatten_dict(self.parameters, sep="/")

  @property
  def tokenizer(self) -> Any:
    """A new SentencePiece processor, or None."""
    return None if self.tokenizer_path is None else folders.open_tokenizer(self.tokenizer_path)


def open_language_model(
  path: Path | str, *, dtype: str | None = None, tokenizer: Path | str | None = None
) -> StoredLanguageModel:
  """Opens a model without reading its weights.

  Args:
    path: a Hugging Face folder (config.json, with safetensors or pytorch_model.bin), or a T5X
      checkpoint (`checkpoint_<step>`), which may be gs://bucket/….
    dtype: "float32", "bfloat16" or "float16" casts the weights; "int8" quantises the large ones as
      they are read (see `slm_jax.models.quantization`); None keeps the file's types.
    tokenizer: SentencePiece model, or tokenizer.json of one; None takes spiece.model, else
      tokenizer.json, in the folder or beside a checkpoint.

  Raises:
    UserError: neither of the two, a file is missing or damaged, or a tensor is missing, surplus or
      mis-shaped; or the shapes of a checkpoint leave open what model it is.
  """
  folder, kind = Path(path), "int8" if dtype == "int8" else "float"
  dtype = None if kind == "int8" else dtype
  if is_remote(path) or t5x_format.is_checkpoint(folder):
    config, parameters = t5x_checkpoint.open_t5x_language_model(path, dtype=dtype)
    beside = () if is_remote(path) else (folder, folder.resolve().parent)
  else:
    _check_is_folder_of_a_model(folder)
    config, parameters = open_hf_language_model(folder, dtype=dtype)
    beside = (folder,)
  stored: dict[str, Any] = dict(parameters)
  if tokenizer is not None:
    if not Path(tokenizer).is_file():
      raise UserError(f"tokenizer {tokenizer} does not exist; expected a SentencePiece model")
    found = Path(tokenizer)
  else:
    found = folders.find_tokenizer(beside)
  if kind == "int8":
    config = dataclasses.replace(config, weights=kind)
    shapes = traverse_util.flatten_dict(nn.unbox(abstract_params(config)), sep="/")
    stored = quantized(parameters, shapes)
  return StoredLanguageModel(config=config, parameters=stored, tokenizer_path=found)


def load_language_model(
  path: Path | str,
  *,
  dtype: str | None = None,
  mesh: Mesh | None = None,
  tokenizer: Path | str | None = None,
) -> LanguageModel:
  """Reads a T5, T5 1.1, mT5 or umT5 model onto devices, one parameter, or shard of it, at a time.

  Computation is in fp32 unless `config.dtype` is replaced.

  Args:
    path, dtype, tokenizer: as of `open_language_model`.
    mesh: spreads the parameters by the rules of `slm_jax.models.partitioning`, each process reading
      only its own slices, and the rows of what `generate` gets; None takes the default device.

  Raises:
    UserError: as of `open_language_model`; or tensors hold NaN or infinite values.
    ValueError: the mesh lacks an axis that the rules name.
  """
  if mesh is not None and (lacking := _MESH_AXES - set(mesh.axis_names)):
    raise ValueError(
      f"mesh has the axes {mesh.axis_names} and lacks {sorted(lacking)}; make it with make_mesh of "
      "slm_jax.training.sharding"
    )
  source = open_language_model(path, dtype=dtype, tokenizer=tokenizer)
  # A damaged tokenizer is found before gigabytes are read.
  processor = source.tokenizer
  shardings = None if mesh is None else _shardings(source.config, mesh)
  placed = place_all(source.parameters, shardings)
  params = traverse_util.unflatten_dict(placed, sep="/")
  return LanguageModel(source.config, params, processor, mesh)


def _check_is_folder_of_a_model(folder: Path) -> None:
  if not folder.is_dir() or (folder / folders.CONFIG_NAME).is_file():
    return
  inside = sorted(child.name for child in folder.glob("checkpoint_*") if child.is_dir())
  hint = f"; name one of the checkpoints in it: {t5x_format.some(inside)}" if inside else ""
  raise UserError(
    f"{folder} holds neither {folders.CONFIG_NAME} (a Hugging Face folder) nor "
    f"{t5x_format.FILE_NAME} or {t5x_format.ORBAX_FOLDER}/ (a T5X checkpoint){hint}"
  )


def _shardings(config: T5Config, mesh: Mesh) -> dict[str, NamedSharding]:
  """Where each parameter belongs, by path."""
  shardings = parameter_shardings(abstract_params(config), mesh)
  return traverse_util.flatten_dict(shardings, sep="/")  # pyright: ignore[reportReturnType]


def is_remote(path: Path | str) -> bool:
  """Whether it is in a bucket."""
  return str(path).startswith(REMOTE_PREFIX)
