"""Model folders in the Hugging Face layout: config.json, and weights in one file or in shards.

Weights are written as safetensors, and read from safetensors or, where a folder has none, from
`pytorch_model.bin`.

Every defect of a folder is a one-line `UserError` that names the file and the tensor.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import fast_tokenizer
from slm_jax.interop.safetensors_file import SafetensorsFile
from slm_jax.interop.safetensors_writer import INDEX_NAME, WEIGHTS_NAME, atomic_file
from slm_jax.interop.stored_parameter import FLOAT_TYPES, StoredParameter, StoredTensor
from slm_jax.interop.torch_file import TorchFile

TORCH_WEIGHTS_NAME = "pytorch_model.bin"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"
CONFIG_NAME = "config.json"
TOKENIZER_NAME = "spiece.model"
FAST_TOKENIZER_NAME = "tokenizer.json"


class TensorFolder:
  """The tensors of a folder; opening it reads names, shapes and types alone.

  Attributes:
    tensors: what it holds, by name.
  """

  def __init__(self, folder: Path | str):
    """Opens `folder`; raises UserError when it, its weights or a shard is missing or damaged."""
    self.folder = Path(folder)
    self.tensors: dict[str, StoredTensor] = {}
    file_of: dict[str, str] = {}
    for path in _weight_files(self.folder):
      file = TorchFile(path) if path.suffix == ".bin" else SafetensorsFile(path)
      for name, tensor in file.tensors.items():
        if name in file_of:
          raise UserError(f"{self.folder}: tensor {name} is in {file_of[name]} and {path.name}")
        self.tensors[name], file_of[name] = tensor, path.name

  def check(self, expected: Mapping[str, tuple[int, ...]], *, ignored: Iterable[str] = ()) -> None:
    """Raises UserError unless the folder holds exactly the expected names and shapes.

    Names in `ignored` may be there too.
    """
    missing = sorted(expected.keys() - self.tensors.keys())
    if missing:
      raise UserError(
        f"{self.folder} lacks {len(missing)} tensors that config.json calls for: {_few(missing)}"
      )
    surplus = sorted(self.tensors.keys() - expected.keys() - set(ignored))
    if surplus:
      raise UserError(
        f"{self.folder} holds {len(surplus)} tensors that config.json has no place for: "
        f"{_few(surplus)}"
      )
    wrong = [
      f"{name} is {list(self.tensors[name].shape)}, expected {list(shape)}"
      for name, shape in sorted(expected.items())
      if self.tensors[name].shape != tuple(shape)
    ]
    if wrong:
      raise UserError(f"{self.folder}: {len(wrong)} tensors do not fit config.json: {_few(wrong)}")

  def parameter(self, name: str, dtype: str | None = None) -> StoredParameter:
    """One float tensor as it is, cast to `dtype` unless None; float64 becomes float32."""
    tensor = self.tensors[name]
    return StoredParameter(
      shape=tensor.shape, dtype=result_dtype([tensor], dtype), tensors=(tensor,)
    )


def result_dtype(tensors: Iterable[StoredTensor], dtype: str | None) -> np.dtype:
  """`dtype`, or the one that holds what the tensors hold, where float64 counts as float32."""
  if dtype is not None:
    return np.dtype(dtype)
  return np.result_type(*(np.dtype(t.dtype.replace("float64", "float32")) for t in tensors))


def check_dtype(dtype: str | None) -> None:
  """Raises UserError for anything but None or the name of a float type that weights may have."""
  if dtype is not None and dtype not in FLOAT_TYPES:
    raise UserError(f"dtype={dtype!r}: expected None or one of {[*FLOAT_TYPES, 'int8']}")


def read_config(folder: Path | str) -> dict:
  """config.json as a dict; UserError when it is missing or not a JSON object."""
  folder = Path(folder)
  if not folder.is_dir():
    what = "is a file, no folder" if folder.exists() else "does not exist"
    raise UserError(f"model folder {folder} {what}")
  return read_json_object(folder / CONFIG_NAME)


def write_config(folder: Path | str, config: Mapping) -> None:
  """Writes config.json atomically, creating the folder."""
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  write_bytes(Path(folder) / CONFIG_NAME, text.encode())


def open_tokenizer(path: Path | str):
  """The SentencePiece processor of a spiece.model, or of a unigram tokenizer.json; UserError if it is none."""
  import sentencepiece

  try:
    if Path(path).suffix == ".json":
      return sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model(path))
    return sentencepiece.SentencePieceProcessor(model_file=str(path))
  except (OSError, RuntimeError) as error:
    raise UserError(f"{path} is not a SentencePiece model: {error}") from error


def tokenizer_model(path: Path | str) -> bytes:
  """What a spiece.model of this tokenizer holds; UserError as of `open_tokenizer`."""
  path = Path(path)
  if path.suffix == ".json":
    return fast_tokenizer.sentencepiece_model(read_json_object(path), path)
  return path.read_bytes()


def find_tokenizer(folders: Iterable[Path]) -> Path | None:
  """The first spiece.model, else the first tokenizer.json of a unigram model."""
  folders = tuple(folders)
  models = [folder / TOKENIZER_NAME for folder in folders]
  fast = [folder / FAST_TOKENIZER_NAME for folder in folders]
  found = next((file for file in models if file.is_file()), None)
  return found or next(
    (f for f in fast if f.is_file() and fast_tokenizer.is_unigram(read_json_object(f))), None
  )


def write_bytes(path: Path, content: bytes) -> None:
  """Puts `content` at `path`; a reader, or a kill at any moment, meets the old file or the new."""
  with atomic_file(path) as file:
    file.write(content)


def _weight_files(folder: Path) -> list[Path]:
  if not folder.is_dir():
    what = "is a file, no folder" if folder.exists() else "does not exist"
    raise UserError(f"model folder {folder} {what}")
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
  weight_map = read_json_object(index).get("weight_map")
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


def read_json_object(path: Path) -> dict:
  """The object in a JSON file; UserError when it is missing, damaged or holds something else."""
  try:
    content = json.loads(path.read_text())
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} holds a JSON {type(content).__name__}, expected an object")
  return content


def _few(names: list[str]) -> str:
  shown = ", ".join(names[:3])
  return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
