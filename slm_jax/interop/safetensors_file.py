"""Files of safetensors, read slice by slice without the library that maps them into memory.

A file is 8 bytes (the header's length, little-endian), a JSON header, and the tensors' bytes in C
order, little-endian, one after the other without a gap.
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop.file_slices import read_slice
from slm_jax.interop.stored_parameter import Index, StoredTensor

_MAX_HEADER_BYTES = 100_000_000  # of the format
_MAX_RANK = 32  # of NumPy 1
# Zero elements need no bytes, whatever the other dimensions say.
_MAX_EMPTY_BYTES = 2**31
DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}


class SafetensorsFile:
  """One file; opening it reads the header alone.

  Attributes:
    path: the file.
    tensors: what it holds, by name.
  """

  def __init__(self, path: Path | str):
    """Opens `path`; raises UserError if it is missing, truncated, or its header contradicts itself."""
    self.path = Path(path)
    try:
      header, start, size = _read_header(self.path)
      spans = _checked_spans(header, size - start)
    except OSError as error:
      raise UserError(f"{path} is not a readable safetensors file: {error.strerror}") from error
    except ValueError as error:
      raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    self.tensors = {
      name: self._tensor(name, dtype, shape, start + offset)
      for name, (dtype, shape, offset) in spans.items()
    }

  def _tensor(self, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> StoredTensor:
    place = f"{self.path}: {name}"

    def load(index: Index) -> np.ndarray:
      try:
        return read_slice(self.path, offset=offset, shape=shape, dtype=np.dtype(dtype), index=index)
      except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read: {error}") from error

    return StoredTensor(place=place, shape=shape, dtype=dtype, load=load)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
  """(header, where the tensors start, size of the file)."""
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > min(_MAX_HEADER_BYTES, size - 8):
      raise ValueError(f"its header goes beyond the file's {size} bytes or is implausibly large")
    content = file.read(length)
  try:
    header = json.loads(content.decode(), object_pairs_hook=_unique)
  except RecursionError as error:
    raise ValueError("its header is nested too deeply") from error
  if not isinstance(header, dict):
    raise ValueError(f"its header is a JSON {type(header).__name__}, expected an object")
  return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError("its header names something twice")
  return found


def _checked_spans(
  header: dict[str, Any], size: int
) -> dict[str, tuple[str, tuple[int, ...], int]]:
  """(type, shape, offset) of every tensor; ValueError unless they fill `size` bytes exactly."""
  spans, order = {}, []
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
      raise ValueError(f"the entry of {name[:200]} has not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
      raise ValueError(f"{name[:200]} is of type {dtype!r:.50}, expected one of {list(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > _MAX_RANK:
      raise ValueError(f"{name[:200]} has the shape {shape!r:.100}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
      raise ValueError(f"{name[:200]} has the data_offsets {offsets!r:.100}")
    item = np.dtype(DTYPES[dtype]).itemsize
    start, stop = offsets
    room = _MAX_EMPTY_BYTES if 0 in shape else size
    if stop - start != math.prod(shape) * item or math.prod(max(n, 1) for n in shape) * item > room:
      raise ValueError(f"{name[:200]} of shape {shape!r:.100} has the data_offsets {offsets}")
    spans[name] = (DTYPES[dtype], tuple(shape), start)
    order.append((start, stop, name))
  end = 0
  for start, stop, name in sorted(order):
    if start != end:
      raise ValueError(f"{name[:200]} starts at byte {start}, where byte {end} was expected")
    end = stop
  if end != size:
    raise ValueError(f"its tensors have {end} bytes, but {size} follow the header")
  return spans


def _whole_numbers(value: Any) -> bool:
  return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
