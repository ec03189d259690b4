"""Model folders in the Hugging Face layout: config.json, and weights in one file or in shards.

Weights are written as safetensors, and read from safetensors or, where a folder has none, from
`pytorch_model.bin`.

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
from slm_jax.interop.torch_file import TorchFile

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TORCH_WEIGHTS_NAME = "pytorch_model.bin"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"
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
    self._file_of: dict[str, _SafetensorsFile | TorchFile] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(self.folder):
      file = _open(path)
      for name, shape in file.shapes.items():
        if name in self.shapes:
          raise UserError(
            f"{self.folder}: tensor {name} is in {self._file_of[name].path.name} and {path.name}"
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
    """One float tensor, cast to `dtype` unless None; UserError if it holds NaN or infinity.

    A float64 tensor becomes float32, in which nothing may be infinite either.
    """
    file = self._file_of[name]
    array = file.read(name)
    if array.dtype == np.float64:
      with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if array.dtype.name not in _FLOAT_TYPES:
      raise UserError(
        f"{file.path}: {name} is {array.dtype.name}, expected one of {list(_FLOAT_TYPES)}"
      )
    if not np.isfinite(array).all():
      bad = int((~np.isfinite(array)).sum())
      raise UserError(
        f"{file.path}: {name} holds {bad} values that are NaN or infinite; the weights are damaged"
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


class _SafetensorsFile:
  """One file of tensors, with the attributes and `read` of `TorchFile`."""

  def __init__(self, path: Path):
    self.path = path
    try:
      with safetensors.safe_open(path, framework="numpy") as file:
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(f"{path} is not a readable safetensors file: {error}") from error

  def read(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self.path, framework="numpy") as file:
      return file.get_tensor(name)


def _open(path: Path) -> _SafetensorsFile | TorchFile:
  return TorchFile(path) if path.suffix == ".bin" else _SafetensorsFile(path)


def _weight_files(folder: Path) -> list[Path]:
  if not folder.is_dir():
    raise UserError(f"model folder {folder} does not exist")
  for name, index in ((WEIGHTS_NAME, INDEX_NAME), (TORCH_WEIGHTS_NAME, TORCH_INDEX_NAME)):
    if (folder / name).is_file():
      return [folder / name]
    if (folder / index).is_file():
      return _shards(folder / index)
  raise UserError(
    f"{folder} holds neither {WEIGHTS_NAME}, {INDEX_NAME}, {TORCH_WEIGHTS_NAME} nor "
    f"{TORCH_INDEX_NAME}; convert other weight formats to safetensors first"
  )


def _shards(index: Path) -> list[Path]:
  weight_map = _read_json_object(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise UserError(f"{index} has no weight_map")
  # A folder is read within its bounds, whoever wrote it.
  if bad := [name for name in weight_map.values() if not _is_shard_name(name, index)]:
    raise UserError(f"{index} names the shard {bad[0]!r}, expected a file name beside it")
  files = [index.parent / name for name in sorted(set(weight_map.values()))]
  absent = [file.name for file in files if not file.is_file()]
  if absent:
    raise UserError(
      f"{index.parent} lacks {len(absent)} of {len(files)} shards named by {index.name}: "
      f"{_few(absent)}"
    )
  return files


def _is_shard_name(name: object, index: Path) -> bool:
  suffix = ".bin" if index.name == TORCH_INDEX_NAME else ".safetensors"
  return isinstance(name, str) and name == Path(name).name and name.endswith(suffix)


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
