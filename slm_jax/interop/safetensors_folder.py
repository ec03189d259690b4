"""Model folders in the Hugging Face layout: config.json, and safetensors in one file or in shards.

Every defect of a folder is a one-line `UserError` that names the file and the tensor.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs to return it
import numpy as np
import safetensors
from safetensors.numpy import save

from slm_jax.errors import UserError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"
TOKENIZER_NAME = "spiece.model"
_FLOAT_TYPES = ("float32", "bfloat16", "float16")


class TensorFolder:
  """The tensors of a folder, read one at a time.

  Attributes:
    shapes: shape of every tensor by name, known without reading it.
  """

  def __init__(self, folder: Path | str):
    """Opens `folder`; raises UserError when it, its weights or a shard is missing or damaged."""
    self.folder = Path(folder)
    self._file_of: dict[str, Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(self.folder):
      for name, shape in _file_shapes(file).items():
        if name in self.shapes:
          raise UserError(
            f"{self.folder}: tensor {name} is in {self._file_of[name].name} and {file.name}"
          )
        self.shapes[name] = shape
        self._file_of[name] = file

  def check(self, expected: Mapping[str, tuple[int, ...]], *, ignored: Iterable[str] = ()) -> None:
    """Raises UserError unless the folder holds exactly the expected names and shapes.

    Names in `ignored` may be there too.
    """
    missing = sorted(expected.keys() - self.shapes.keys())
    if missing:
      raise UserError(
        f"{self.folder} lacks {len(missing)} tensors that config.json calls for: {_few(missing)}"
      )
    surplus = sorted(self.shapes.keys() - expected.keys() - set(ignored))
    if surplus:
      raise UserError(
        f"{self.folder} holds {len(surplus)} tensors that config.json has no place for: "
        f"{_few(surplus)}"
      )
    wrong = [
      f"{name} is {list(self.shapes[name])}, expected {list(shape)}"
      for name, shape in sorted(expected.items())
      if self.shapes[name] != tuple(shape)
    ]
    if wrong:
      raise UserError(f"{self.folder}: {len(wrong)} tensors do not fit config.json: {_few(wrong)}")

  def read(self, name: str, dtype: str | None = None) -> np.ndarray:
    """One float tensor, cast to `dtype` unless None; UserError if it holds NaN or infinity."""
    with safetensors.safe_open(self._file_of[name], framework="numpy") as file:
      array = file.get_tensor(name)
    if array.dtype.name not in _FLOAT_TYPES:
      raise UserError(
        f"{self._file_of[name]}: {name} is {array.dtype.name}, expected one of {list(_FLOAT_TYPES)}"
      )
    if not np.isfinite(array).all():
      bad = int((~np.isfinite(array)).sum())
      raise UserError(
        f"{self._file_of[name]}: {name} holds {bad} values that are NaN or infinite; "
        "the weights are damaged"
      )
    return array if dtype is None else array.astype(dtype, copy=False)


def check_dtype(dtype: str | None) -> None:
  """Raises UserError for anything but None or the name of a float type that weights may have."""
  if dtype is not None and dtype not in _FLOAT_TYPES:
    raise UserError(f"dtype={dtype!r}: expected None or one of {list(_FLOAT_TYPES)}")


def read_config(folder: Path | str) -> dict:
  """config.json as a dict; UserError when it is missing or not a JSON object."""
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f"model folder {folder} does not exist")
  return _read_json_object(folder / CONFIG_NAME)


def write_config(folder: Path | str, config: Mapping) -> None:
  """Writes config.json atomically, creating the folder."""
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  write_bytes(Path(folder) / CONFIG_NAME, text.encode())


def write_tensors(folder: Path | str, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes all tensors into one model.safetensors atomically, creating the folder."""
  # PyTorch readers refuse a file without the format entry.
  contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
  write_bytes(Path(folder) / WEIGHTS_NAME, save(contiguous, metadata={"format": "pt"}))


def read_tokenizer(folder: Path | str):
  """The SentencePiece processor of spiece.model, None without that file; UserError if damaged."""
  import sentencepiece

  path = Path(folder) / TOKENIZER_NAME
  if not path.is_file():
    return None
  try:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))
  except (OSError, RuntimeError) as error:
    raise UserError(f"{path} is not a SentencePiece model: {error}") from error


def write_bytes(path: Path, content: bytes) -> None:
  """Puts `content` at `path`; a reader, or a kill at any moment, meets the old file or the new."""
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(descriptor, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    # mkstemp makes files private; a model folder is as readable as its surroundings.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _weight_files(folder: Path) -> list[Path]:
  if not folder.is_dir():
    raise UserError(f"model folder {folder} does not exist")
  if (folder / WEIGHTS_NAME).is_file():
    return [folder / WEIGHTS_NAME]
  if not (folder / INDEX_NAME).is_file():
    raise UserError(
      f"{folder} holds neither {WEIGHTS_NAME} nor {INDEX_NAME}; "
      "convert other weight formats to safetensors first"
    )
  weight_map = _read_json_object(folder / INDEX_NAME).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise UserError(f"{folder / INDEX_NAME} has no weight_map")
  files = [folder / name for name in sorted(set(weight_map.values()))]
  absent = [file.name for file in files if not file.is_file()]
  if absent:
    raise UserError(
      f"{folder} lacks {len(absent)} of {len(files)} shards named by {INDEX_NAME}: {_few(absent)}"
    )
  return files


def _file_shapes(path: Path) -> dict[str, tuple[int, ...]]:
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path} is not a readable safetensors file: {error}") from error


def _read_json_object(path: Path) -> dict:
  try:
    content = json.loads(path.read_text())
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} holds a JSON {type(content).__name__}, expected an object")
  return content


def _few(names: list[str]) -> str:
  shown = ", ".join(names[:3])
  return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
