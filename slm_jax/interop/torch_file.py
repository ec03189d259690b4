"""State dicts that `torch.save` wrote (`pytorch_model.bin`), read without PyTorch and without trust.

Both layouts: the zip (a pickle, and one stored entry for each storage), and the one before
PyTorch 1.6 (five pickles in a row, then the storages, each behind its element count).
"""

import dataclasses
import functools
import io
import math
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import pickle_machine
from slm_jax.interop.file_slices import read_slice
from slm_jax.interop.pickle_machine import Call
from slm_jax.interop.stored_parameter import Index, StoredTensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# A tensor takes about 200 bytes of pickle; one byte of a hostile pickle, up to 64 of memory.
_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_RANK = 32  # of NumPy 1
# Zero elements need no storage, whatever the other dimensions say.
_MAX_EMPTY = 2**31


class TorchFile:
  """The tensors of one file, read one at a time; opening it reads the names and shapes alone.

  Attributes:
    path: the file.
    tensors: what it holds, by name.
  """

  def __init__(self, path: Path | str):
    """Opens `path`.

    Raises:
      UserError: the file is missing, truncated or damaged, holds anything but a dict of tensors, or
        asks for a global that tensors do not need, which is then named and never imported.
    """
    self.path = Path(path)
    try:
      with self.path.open("rb") as file:
        self._contents = _read_contents(_Bytes(file))
      self._tensors = _checked_tensors(self._contents)
    except OSError as error:
      raise UserError(f"{self.path} cannot be read: {error.strerror}") from error
    except ValueError as error:
      raise UserError(f"{self.path} is not a readable file of weights: {error}") from error
    self.tensors = {name: self._stored(name, tensor) for name, tensor in self._tensors.items()}

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    """One tensor, or a slice of it, in its stored dtype, C-contiguous.

    Only the slice's bytes are read, unless the tensor is a view that leaves out elements of its
    storage: then all from its first to its last one are.
    """
    tensor = self._tensors[name]
    index = index if index is not None else tuple(slice(0, size) for size in tensor.size)
    try:
      return self._read(tensor, index)
    except (OSError, ValueError) as error:
      raise UserError(f"{self.path}: {name} cannot be read: {error}") from error

  def _stored(self, name: str, tensor: "_Tensor") -> StoredTensor:
    return StoredTensor(
      place=f"{self.path}: {name}",
      shape=tensor.size,
      dtype=tensor.storage.dtype.name,
      load=lambda index: self.read(name, index),
      chunk=None if tensor.order is not None else tensor.size,
    )

  def _read(self, tensor: "_Tensor", index: Index) -> np.ndarray:
    dtype = tensor.storage.dtype
    where = {"offset": self._contents.spans[tensor.storage.key].offset, "dtype": dtype}
    where["offset"] += tensor.offset * dtype.itemsize
    if (order := tensor.order) is not None:
      # Axes sorted as they lie in the file, and put back.
      shape, ordered = [tensor.size[i] for i in order], [index[i] for i in order]
      raw = self._native(read_slice(self.path, shape=shape, index=ordered, **where))
      back = raw.transpose([order.index(i) for i in range(len(order))])
      return np.asarray(back, order="C")
    extent = slice(0, tensor.extent)
    raw = self._native(read_slice(self.path, shape=(extent.stop,), index=(extent,), **where))
    # PyTorch leaves the stride of a dimension of size 1 open; NumPy may not be able to hold it.
    strides = [
      stride * dtype.itemsize if size > 1 else 0
      for size, stride in zip(tensor.size, tensor.stride, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(raw, tensor.size, strides)[index].copy()

  def _native(self, raw: np.ndarray) -> np.ndarray:
    if self._contents.byteorder != sys.byteorder:
      raw.view(f"u{raw.dtype.itemsize}").byteswap(inplace=True)
    return raw


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
  """A flat array in the file, as the pickle declares it."""

  key: str
  dtype: np.dtype
  numel: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
  """A strided view of a storage; offset and strides in elements, believed only after `_check`."""

  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]

  @property
  def extent(self) -> int:
    """Elements of the storage from the view's first to its last."""
    if 0 in self.size:
      return 0
    return 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))

  @functools.cached_property
  def order(self) -> list[int] | None:
    """Axes in the order in which they lie in the storage without gaps; None if there are gaps."""
    order = sorted(range(len(self.size)), key=lambda i: (self.size[i] > 1, -self.stride[i]))
    if 0 in self.size:
      return order
    step = 1
    for axis in reversed(order):
      if self.size[axis] > 1 and self.stride[axis] != step:
        return None
      step *= self.size[axis]
    return order


class _Span(NamedTuple):
  offset: int
  length: int


class _Contents(NamedTuple):
  """state: what the pickle holds; spans: where each storage lies, in bytes; byteorder of these."""

  state: Any
  spans: dict[str, _Span]
  byteorder: str


class _Bytes:
  """A file of known size; every read is within it."""

  def __init__(self, file: BinaryIO):
    self.file = file
    self.size = file.seek(0, io.SEEK_END)

  def read(self, offset: int, length: int) -> np.ndarray:
    """uint8 [length] from `offset`; ValueError when the file does not hold them."""
    if offset < 0 or length < 0 or offset + length > self.size:
      raise ValueError(f"it ends at byte {self.size}, before the {length} bytes at {offset}")
    raw = np.empty(length, np.uint8)
    self.file.seek(offset)
    if self.file.readinto(raw) != length:  # pyright: ignore[reportAttributeAccessIssue]
      raise ValueError(f"it became shorter than {offset + length} bytes while it was read")
    return raw


def _rebuild_tensor(arguments: tuple) -> _Tensor:
  match arguments:
    case (_Storage() as storage, int() as offset, tuple() as size, tuple() as stride, _, _):
      return _Tensor(storage, offset, size, stride)
  raise ValueError("its pickle rebuilds a tensor of a kind that is not known")


def _rebuild_parameter(arguments: tuple) -> _Tensor:
  match arguments:
    case (_Tensor() as tensor, _, _):
      return tensor
  raise ValueError("its pickle makes a parameter of what is no tensor")


def _ordered_dict(arguments: tuple) -> OrderedDict:
  if arguments:
    raise ValueError("its pickle calls OrderedDict with arguments")
  return OrderedDict()


_DTYPES = {
  "Float": np.float32,
  "Double": np.float64,
  "Half": np.float16,
  "BFloat16": ml_dtypes.bfloat16,
  "Long": np.int64,
  "Int": np.int32,
  "Short": np.int16,
  "Char": np.int8,
  "Byte": np.uint8,
  "Bool": np.bool_,
}
_ALLOWED = {
  "collections.OrderedDict": Call(_ordered_dict),
  "torch._utils._rebuild_tensor_v2": Call(_rebuild_tensor),
  "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
  **{f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


class _Storages(dict[str, _Storage]):
  """The storages that a pickle declares, by key."""

  def declare(self, identity: Any) -> _Storage:
    """What a persistent id stands for: ("storage", type, key, device, numel), old: and None."""
    match identity:
      case ("storage", np.dtype() as dtype, str() as key, str(), int() as numel):
        storage = _Storage(key, dtype, numel)
      case ("storage", np.dtype() as dtype, str() as key, str(), int() as numel, None):
        storage = _Storage(key, dtype, numel)
      case _:
        raise ValueError("its pickle refers to a storage of a kind that is not known")
    first = self.setdefault(key, storage)
    if (first.dtype, first.numel) != (dtype, numel):
      raise ValueError(f"its pickle declares storage {key[:100]!r} twice, and differently")
    return first


def _read_contents(file: _Bytes) -> _Contents:
  if file.size >= 4 and file.read(0, 4).tobytes() == b"PK\x03\x04":
    return _read_zip(file)
  return _read_legacy(file)


def _read_zip(file: _Bytes) -> _Contents:
  entries = _zip_entries(file)
  pickles = [name for name in entries if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise ValueError(f"its zip has {len(pickles)} entries named data.pkl, expected one")
  if entries[pickles[0]].length > _MAX_PICKLE_BYTES:
    raise ValueError(f"its data.pkl has more than {_MAX_PICKLE_BYTES} bytes")
  data = io.BytesIO(file.read(*entries[pickles[0]]).tobytes())
  storages = _Storages()
  state = pickle_machine.load(data, allowed=_ALLOWED, persistent_load=storages.declare)

  root = pickles[0].removesuffix("data.pkl")
  spans = {}
  for key, storage in storages.items():
    span = entries.get(f"{root}data/{key}")
    expected = storage.numel * storage.dtype.itemsize
    if span is None or span.length != expected:
      found = "is missing" if span is None else f"has {span.length}"
      raise ValueError(f"its zip entry data/{key[:100]} {found}, expected {expected} bytes")
    spans[key] = span
  byteorder = "little"  # where files of before PyTorch 2.0, which do not say it, were written
  if f"{root}byteorder" in entries:
    byteorder = file.read(*entries[f"{root}byteorder"]).tobytes().decode("ascii")
    if byteorder not in ("little", "big"):
      raise ValueError("its byteorder is neither little nor big")
  return _Contents(state, spans, byteorder)


def _zip_entries(file: _Bytes) -> dict[str, _Span]:
  """Where the bytes of every entry lie. Checksums are left alone, as PyTorch does."""
  try:
    with zipfile.ZipFile(file.file) as archive:  # pyright: ignore[reportArgumentType]
      infos = archive.infolist()
  except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError, OSError) as error:
    raise ValueError(f"its zip is truncated or damaged: {error}") from error
  entries = {}
  for info in infos:
    name = info.filename
    if name in entries:
      raise ValueError(f"its zip has two entries {name[:100]!r}")
    encrypted = info.flag_bits & 1
    if (
      info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or encrypted
    ):
      raise ValueError(f"its zip entry {name[:100]!r} is compressed, torch.save stores them plain")
    # The entry's own header repeats the name, and has padding that the directory does not tell of.
    header = file.read(info.header_offset, 30).tobytes()
    if header[:4] != b"PK\x03\x04":
      raise ValueError(f"its zip entry {name[:100]!r} is not where the directory says")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if start + info.file_size > file.size:
      raise ValueError(f"its zip entry {name[:100]!r} goes beyond the end of the file")
    entries[name] = _Span(start, info.file_size)
  return entries


def _read_legacy(file: _Bytes) -> _Contents:
  head = io.BytesIO(file.read(0, min(file.size, _MAX_PICKLE_BYTES)).tobytes())
  if pickle_machine.load(head, allowed={}) != _LEGACY_MAGIC:
    raise ValueError("it does not start as a file of torch.save does")
  if pickle_machine.load(head, allowed={}) != _LEGACY_PROTOCOL:
    raise ValueError(f"its version is not {_LEGACY_PROTOCOL}, the only one that is known")
  pickle_machine.load(head, allowed={})  # the writer's type sizes, on which nothing depends
  storages = _Storages()
  state = pickle_machine.load(head, allowed=_ALLOWED, persistent_load=storages.declare)
  keys = pickle_machine.load(head, allowed={})
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError("its list of storages is none")
  if len(keys) != len(storages) or set(keys) != set(storages):
    raise ValueError(
      f"it lists {len(keys)} storages, which are not the {len(storages)} of its tensors"
    )

  spans = {}
  offset = head.tell()
  for key in keys:
    numel = int.from_bytes(file.read(offset, 8).tobytes(), "little", signed=True)
    expected = storages[key].numel
    if numel != expected:
      raise ValueError(f"its storage {key[:100]!r} has {numel} elements, expected {expected}")
    spans[key] = _Span(offset + 8, numel * storages[key].dtype.itemsize)
    offset = sum(spans[key])
    if numel < 0 or offset > file.size:
      raise ValueError(f"its storage {key[:100]!r} goes beyond the end of the file")
  return _Contents(state, spans, "little")  # on any machine


def _checked_tensors(contents: _Contents) -> dict[str, _Tensor]:
  if not isinstance(contents.state, dict):
    raise ValueError(f"it holds a {type(contents.state).__name__}, expected a dict of tensors")
  for name, tensor in contents.state.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise ValueError(f"entry {name} is of type {type(tensor).__name__}, expected a tensor")
    _check(name, tensor)
  return dict(contents.state)


def _check(name: str, tensor: _Tensor) -> None:
  """ValueError unless the view lies in its storage, and is no larger than that."""
  size, stride, numel = tensor.size, tensor.stride, tensor.storage.numel
  if len(size) != len(stride) or len(size) > _MAX_RANK:
    raise ValueError(f"tensor {name} has {len(size)} sizes and {len(stride)} strides")
  if not all(type(number) is int and number >= 0 for number in (tensor.offset, *size, *stride)):
    raise ValueError(f"tensor {name} has an offset, size or stride that is no whole number >= 0")
  # A stride of 0 would make any size of one element.
  room = _MAX_EMPTY if 0 in size else numel
  if math.prod(max(n, 1) for n in size) > room or tensor.offset + tensor.extent > numel:
    raise ValueError(
      f"tensor {name} of size {list(size)}, stride {list(stride)} and offset {tensor.offset} "
      f"goes beyond the {numel} elements of its storage"
    )
