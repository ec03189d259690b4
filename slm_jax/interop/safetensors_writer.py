"""Writes folders of safetensors, one tensor in memory at a time."""

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from slm_jax.interop.safetensors_file import DTYPES
from slm_jax.interop.stored_parameter import DamagedWeights

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_BLOCK_BYTES = 64 * 2**20
_NAMES = {numpy: ours for ours, numpy in DTYPES.items()}


class Writable(Protocol):
  """An array, or what becomes one by `np.asarray`; shape and type are known before."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...


def write_tensors(
  folder: Path | str,
  tensors: Mapping[str, Writable],
  *,
  max_shard_bytes: int | None = None,
  report: Callable[[int], None] | None = None,
) -> None:
  """Writes model.safetensors, or shards with an index, atomically, creating the folder.

  A tensor is made by `np.asarray` when its turn comes, and let go when it is written. Tensors stand
  in the given order, those of wider types first, as the format's own library has them.

  Args:
    max_shard_bytes: a shard is closed before a tensor would make it larger; None writes one file.
    report: told the bytes of every tensor when it is written.

  Raises:
    DamagedWeights: of all tensors that raise it; nothing is left behind then.
  """
  folder = Path(folder)
  ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
  shards = _shards({name: tensors[name] for name in ordered}, max_shard_bytes)
  damaged: list[str] = []
  weight_map = {}
  with contextlib.ExitStack() as opened:
    for number, shard in enumerate(shards, start=1):
      name = WEIGHTS_NAME
      if len(shards) > 1:
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
      weight_map |= dict.fromkeys(shard, name)
      file = opened.enter_context(atomic_file(folder / name))
      _write_file(file, shard, damaged, report)
    if damaged:
      raise DamagedWeights(damaged)
  if len(shards) > 1:
    total = sum(byte_size(tensor) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with atomic_file(folder / INDEX_NAME) as file:
      file.write((json.dumps(index, indent=2) + "\n").encode())
    # A reader takes the single file of an earlier save first.
    (folder / WEIGHTS_NAME).unlink(missing_ok=True)


def byte_size(tensor: Writable) -> int:
  """Bytes of the content."""
  return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
  """A file that is at `path` after the block, whole; a kill at any moment leaves the old one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(descriptor, "wb") as file:
      yield file
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


def _shards(
  tensors: Mapping[str, Writable], max_shard_bytes: int | None
) -> list[dict[str, Writable]]:
  shards: list[dict[str, Writable]] = [{}]
  filled = 0
  for name, tensor in tensors.items():
    size = byte_size(tensor)
    if max_shard_bytes is not None and shards[-1] and filled + size > max_shard_bytes:
      shards.append({})
      filled = 0
    shards[-1][name] = tensor
    filled += size
  return shards


def _write_file(
  file: BinaryIO,
  tensors: Mapping[str, Writable],
  damaged: list[str],
  report: Callable[[int], None] | None,
) -> None:
  # PyTorch readers refuse a file without the format entry.
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, tensor in tensors.items():
    start, end = end, end + byte_size(tensor)
    dtype, shape = _NAMES[tensor.dtype.name], list(tensor.shape)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
  content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  content += b" " * (-len(content) % 8)
  file.write(struct.pack("<Q", len(content)) + content)
  for tensor in tensors.values():
    try:
      array = np.asarray(tensor)
    except DamagedWeights as error:
      damaged += error.places
      continue
    # After damage the rest is only looked at, so that all of it is named at once.
    if not damaged:
      _write_array(file, array)
    if report is not None:
      report(array.nbytes)
    del array


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
  """In C order, in blocks: the array may be a view in another order."""
  array = array if array.ndim else array[None]
  rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
  for start in range(0, len(array), rows):
    block = np.ascontiguousarray(array[start : start + rows])
    file.write(block.reshape(-1).view(np.uint8).data)
