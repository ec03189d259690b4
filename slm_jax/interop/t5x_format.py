"""Parameters in the folders that T5X writes, `checkpoint_<step>/`, by their path in the model.

Read are two layouts. T5X's own has a msgpack file `checkpoint` in Flax's encoding,
{"version": 3, "optimizer": {"target": parameters, "state": optimiser}}, where an array is inline or
is the TensorStore spec of a zarr array beside the file. Orbax's is the folder `state/`, an OCDBT
database or one zarr array per folder. Written is T5X's own. Nothing but `target` is ever read.

Every defect of a checkpoint is a one-line `UserError` that names the array.
"""

import io
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, so that it is a name of a dtype
import msgpack
import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import write_bytes
from slm_jax.interop.stored_parameter import Index, StoredTensor

FILE_NAME = "checkpoint"
VERSION = 3
# In version 2 bfloat16 arrays are stored as uint16; all else is the same.
_READABLE_VERSIONS = (2, VERSION)
_LOCAL_DRIVERS = ("file", "gfile")
_REMOTE_DRIVERS = ("gcs", "gs")
ORBAX_FOLDER = "state"
_PLACEHOLDER = "PLACEHOLDER://"
_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY_CODES = (1, 3)  # Flax's extension types of arrays and of NumPy scalars
_CHUNK_BYTES = 64 * 2**20
# Half a minute for a network that comes back; TensorStore's own patience is a silent quarter of an hour.
_RETRIES = {"gcs_request_retries": {"max_retries": 6, "initial_delay": "1s", "max_delay": "8s"}}
_CONTEXT = ts.Context(_RETRIES)
# What TensorStore raises, by the kind of status.
_STORE_ERRORS = (ValueError, KeyError, IndexError, OSError, NotImplementedError, RuntimeError)


def is_checkpoint(folder: Path) -> bool:
  """Whether a local folder is laid out as a checkpoint of T5X."""
  return (folder / FILE_NAME).is_file() or (folder / ORBAX_FOLDER).is_dir()


def open_target(path: Path | str) -> dict[str, StoredTensor]:
  """The parameters of a checkpoint by path, e.g. "encoder/layers_0/mlp/wo/kernel".

  Args:
    path: the folder `checkpoint_<step>`, local or gs://bucket/...

  Raises:
    UserError: it is no checkpoint of T5X, or arrays of it are missing or damaged.
  """
  if not str(path).startswith("gs://"):
    _check_local(Path(path))
  root = ts.KvStore.open(kvstore_spec(path), context=_CONTEXT).result()
  content = _read_file(root, FILE_NAME, str(path))
  if content is not None:
    return _from_tree(_legacy_tree(content, f"{path}/{FILE_NAME}"), root, str(path))
  state, label = root / f"{ORBAX_FOLDER}/", f"{path}/{ORBAX_FOLDER}"
  if _read_file(state, "manifest.ocdbt", label) is not None:
    database = {"driver": "ocdbt", "base": state.spec().to_json()}
    return _from_keys(ts.KvStore.open(database, context=_CONTEXT).result(), label)
  content = _read_file(state, FILE_NAME, label)
  if content is not None:
    return _from_tree(_orbax_tree(content, f"{label}/{FILE_NAME}"), state, label)
  return _from_keys(state, label)


def read_beside(path: Path | str, name: str) -> bytes | None:
  """A small file of the folder above a checkpoint, None if there is none or it cannot be read."""
  spec = kvstore_spec(path)
  above = spec["path"].strip("/").rpartition("/")[0]
  spec["path"] = f"/{above}/" if spec["driver"] == "file" else f"{above}/"
  try:
    return _read_file(ts.KvStore.open(spec, context=_CONTEXT).result(), name, str(path))
  except (UserError, *_STORE_ERRORS):
    return None


def kvstore_spec(path: Path | str) -> dict[str, str]:
  """TensorStore's description of a folder: of a local one, or of gs://bucket/folder."""
  text = str(path)
  if not text.startswith("gs://"):
    return {"driver": "file", "path": f"{Path(path).resolve()}/"}
  bucket, _, folder = text.removeprefix("gs://").strip("/").partition("/")
  if not bucket or not folder:
    raise UserError(f"{text}: expected gs://bucket/folder")
  return {"driver": "gcs", "bucket": bucket, "path": f"{folder}/"}


def write_target(
  path: Path | str,
  arrays: Iterable[tuple[str, np.ndarray]],
  step: int,
  *,
  report: Callable[[int], None] | None = None,
) -> Path:
  """Writes `path`/checkpoint_<step> in T5X's own layout, without optimiser state.

  Vectors are inline; the rest is zarr, gzip level 1, in chunks of at most 64 MiB where rows allow.
  The folder appears, whole, at the end.

  Args:
    arrays: pairs of path and parameter, written as they come.
    report: told the bytes of every array when it is written.

  Returns:
    The new folder.

  Raises:
    UserError: it exists.
  """
  final = Path(path) / f"checkpoint_{step}"
  if final.exists():
    raise UserError(f"{final} exists; checkpoints are not overwritten, remove it or change step")
  temporary = final.with_name(f"{final.name}.tmp-{time.time_ns()}")
  temporary.mkdir(parents=True)
  try:
    entries = {}
    for name, array in arrays:
      inline = array.ndim < 2
      entries[name] = np.array(array) if inline else _write_zarr(temporary, name, array)
      if report is not None:
        report(array.nbytes)
    target = traverse_util.unflatten_dict(entries, sep="/")
    optimizer = {"target": target, "state": {"step": np.array(step, np.int32)}}
    content = serialization.msgpack_serialize({"version": VERSION, "optimizer": optimizer})
    write_bytes(temporary / FILE_NAME, content)
    os.rename(temporary, final)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  return final


def some(names: list[str]) -> str:
  """The first of `names`, and how many more there are."""
  shown = ", ".join(names[:6])
  return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"


def _write_zarr(folder: Path, name: str, array: np.ndarray) -> dict:
  """Writes one array and returns its spec, whose path is relative to the checkpoint."""
  row_bytes = array[:1].nbytes
  rows = min(len(array), max(1, _CHUNK_BYTES // row_bytes))
  spec = {
    "driver": "zarr",
    "dtype": array.dtype.name,
    "kvstore": {"driver": "file", "path": f"target.{name.replace('/', '.')}/"},
    "metadata": {
      "chunks": [rows, *array.shape[1:]],
      "compressor": {"id": "gzip", "level": 1},
      "shape": list(array.shape),
    },
  }
  path = f"{folder.resolve()}/{spec['kvstore']['path']}"
  # Without a fill value in the metadata TensorStore writes chunks of zeros too, which a reader that
  # takes a missing chunk for damage relies on.
  store = ts.open({**spec, "kvstore": {"driver": "file", "path": path}}, create=True).result()
  store.write(np.ascontiguousarray(array)).result()
  return spec


def _check_local(folder: Path) -> None:
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; expected T5X's checkpoint_<step>")
  if is_checkpoint(folder):
    return
  inside = sorted(child.name for child in folder.glob("checkpoint_*") if child.is_dir())
  hint = f"; name one of the checkpoints in it: {some(inside)}" if inside else ""
  raise UserError(f"{folder} holds neither the file {FILE_NAME} nor {ORBAX_FOLDER}/{hint}")


def _read_file(store: ts.KvStore, key: str, label: str) -> bytes | None:
  try:
    result = store.read(key).result()
  except _STORE_ERRORS as error:
    raise UserError(f"{label}/{key} cannot be read: {_reason(error)}") from error
  return None if result.state == "missing" else result.value


def _legacy_tree(content: bytes, label: str) -> Any:
  """`target` of T5X's msgpack file; the optimiser's state is passed over, not decoded."""
  optimizer = {"target": msgpack.Unpacker.unpack}
  members = {
    "version": msgpack.Unpacker.unpack,
    "optimizer": lambda unpacker: _members(unpacker, optimizer),
  }
  found = _unpack(content, members, label)
  if (version := found.get("version")) not in _READABLE_VERSIONS:
    raise UserError(
      f"{label} is of version {version!r}, expected one of {list(_READABLE_VERSIONS)}"
    )
  return found.get("optimizer", {}).get("target")


def _orbax_tree(content: bytes, label: str) -> Any:
  """`target` of the msgpack file that older Orbax wrote beside its arrays."""
  return _unpack(content, {"target": msgpack.Unpacker.unpack}, label).get("target")


def _unpack(content: bytes, members: Mapping[str, Callable], label: str) -> dict:
  unpacker = msgpack.Unpacker(io.BytesIO(content), max_buffer_size=0)
  try:
    return _members(unpacker, members)
  except (msgpack.UnpackException, ValueError, TypeError) as error:
    reason = str(error) or "it ends early"
    raise UserError(f"{label} is not a msgpack file of T5X: {reason}") from error


def _members(unpacker: msgpack.Unpacker, members: Mapping[str, Callable]) -> dict:
  """The members of the next map that `members` has a reader for; others are skipped."""
  found = {}
  for _ in range(unpacker.read_map_header()):
    key = unpacker.unpack()
    if key in members:
      found[key] = members[key](unpacker)
    else:
      unpacker.skip()
  return found


def _from_tree(tree: Any, root: ts.KvStore, label: str) -> dict[str, StoredTensor]:
  if not isinstance(tree, dict) or not tree:
    raise UserError(f"{label}/{FILE_NAME} has no parameters, expected them under target")
  inline, folders = {}, {}
  for name, leaf in _leaves(tree, ""):
    place = f"{label}: {name}"
    folder = _zarr_folder(leaf, place)
    if folder is not None:
      folders[name] = folder
      continue
    array = _inline_array(leaf, place)
    inline[name] = StoredTensor(
      place=place, shape=array.shape, dtype=array.dtype.name, load=array.__getitem__
    )
  return inline | _open_arrays(root, folders, label)


def _from_keys(store: ts.KvStore, label: str) -> dict[str, StoredTensor]:
  """Arrays of a store without a tree: a folder `target.a.b` is the parameter a/b."""
  # "/" follows "." in ASCII: the range holds what starts with "target.", and nothing is listed
  # of the optimiser.
  try:
    keys = store.list(ts.KvStore.KeyRange("target.", "target/")).result()
  except _STORE_ERRORS as error:
    raise UserError(f"{label} cannot be read: {_reason(error)}") from error
  folders = {}
  for key in keys:
    folder, _, file = key.decode().rpartition("/")
    if file in (".zarray", "zarr.json"):
      folders[folder.removeprefix("target.").replace(".", "/")] = folder
  if not folders:
    raise UserError(f"{label} holds no parameters, expected arrays named target.…")
  return _open_arrays(store, folders, label, zarr3=any(key.endswith(b"/zarr.json") for key in keys))


def _open_arrays(
  root: ts.KvStore, folders: Mapping[str, str], label: str, *, zarr3: bool = False
) -> dict[str, StoredTensor]:
  opening = {}
  for name, folder in folders.items():
    spec = {
      "driver": "zarr3" if zarr3 else "zarr",
      "kvstore": (root / f"{folder}/").spec().to_json(),
      # A lost chunk would be read as zeros.
      "fill_missing_data_reads": False,
    }
    opening[name] = ts.open(spec, context=_CONTEXT, read=True, open=True)
  arrays, damaged = {}, []
  last = _LastChunk()
  for name, future in opening.items():
    try:
      store = future.result()
    except _STORE_ERRORS as error:
      damaged.append(f"{name} ({_reason(error)})")
      continue
    arrays[name] = _stored_tensor(store, f"{label}: {name}", last)
  if damaged:
    raise UserError(f"{label}: {len(damaged)} arrays cannot be opened: {some(damaged)}")
  return arrays


class _LastChunk:
  """Keeps the chunk that was decoded last, of one array: for chunks too large to be read more than once,
  or to have beside a copy."""

  def __init__(self):
    self._array: ts.TensorStore | None = None
    self._keeping: ts.TensorStore | None = None

  def opened(self, array: ts.TensorStore, chunk_bytes: int) -> ts.TensorStore:
    """The same array, opened to keep a chunk; what was kept of another one is let go before."""
    if array is not self._array or self._keeping is None:
      self._array = self._keeping = None
      # The pool counts a little more than the content.
      limit = {**_RETRIES, "cache_pool": {"total_bytes_limit": chunk_bytes + 2**20}}
      spec = {**array.spec().to_json(), "recheck_cached_data": "open"}
      opening = ts.open(spec, context=ts.Context(limit), read=True, open=True)
      self._array, self._keeping = array, opening.result()
    return self._keeping


def _stored_tensor(store: ts.TensorStore, place: str, last: _LastChunk) -> StoredTensor:
  chunk = tuple(size or 1 for size in store.chunk_layout.read_chunk.shape or ())
  chunk_bytes = math.prod(chunk) * store.dtype.numpy_dtype.itemsize
  large = chunk_bytes > _CHUNK_BYTES

  def load(index: Index) -> np.ndarray:
    try:
      array = last.opened(store, chunk_bytes) if large else store
      return np.asarray(array[index].read().result())
    except _STORE_ERRORS as error:
      raise UserError(f"{place} cannot be read: {_reason(error)}") from error

  return StoredTensor(
    place=place,
    shape=tuple(store.shape),
    dtype=store.dtype.name,
    load=load,
    chunk=chunk,
    keeps_chunk=large,
  )


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict) and "kvstore" not in value and _CHUNKED not in value:
      yield from _leaves(value, f"{prefix}{key}/")
    else:
      yield f"{prefix}{key}", value


def _zarr_folder(leaf: Any, place: str) -> str | None:
  """Folder of an array that is not inline, relative to the checkpoint."""
  if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
    path = leaf.removeprefix(_PLACEHOLDER)
  elif isinstance(leaf, dict) and isinstance(leaf.get("kvstore"), dict):
    driver, store = leaf.get("driver"), leaf["kvstore"].get("driver")
    if driver != "zarr" or store not in _LOCAL_DRIVERS + _REMOTE_DRIVERS:
      raise UserError(
        f"{place} is stored by the drivers {driver!r} and {store!r}, expected 'zarr' and one of "
        f"{[*_LOCAL_DRIVERS, *_REMOTE_DRIVERS]}"
      )
    # TensorStore before 0.1.14 had the path outside of kvstore.
    path = leaf["kvstore"].get("path", leaf.get("path"))
  else:
    return None
  if not isinstance(path, str) or not path.strip("/") or ".." in PurePosixPath(path).parts:
    raise UserError(f"{place} is at {path!r}, expected a folder beside the file {FILE_NAME}")
  # An absolute path is that of the machine that wrote the array; it moved with the checkpoint.
  return PurePosixPath(path).name if path.startswith("/") else str(PurePosixPath(path))


def _inline_array(leaf: Any, place: str) -> np.ndarray:
  try:
    if isinstance(leaf, dict) and _CHUNKED in leaf:
      # Flax cuts arrays of more than 1 GiB; tuples are dicts with the keys "0", "1", …
      shape, chunks = leaf["shape"], leaf["chunks"]
      parts = [_decode(chunks[str(i)]) for i in range(len(chunks))]
      return np.concatenate(parts).reshape([shape[str(i)] for i in range(len(shape))])
    return _decode(leaf)
  except (msgpack.UnpackException, ValueError, TypeError, KeyError) as error:
    raise UserError(f"{place} is not a readable array: {error}") from error


def _decode(leaf: Any) -> np.ndarray:
  """Flax's encoding: the msgpack of (shape, name of the type, bytes in C order)."""
  if not isinstance(leaf, msgpack.ExtType) or leaf.code not in _NDARRAY_CODES:
    raise ValueError(f"expected an array, found {type(leaf).__name__}")
  shape, dtype, content = msgpack.unpackb(leaf.data, raw=True)
  return np.frombuffer(content, dtype=np.dtype(dtype.decode())).reshape(shape)


def _reason(error: Exception) -> str:
  """What TensorStore says, without its list of source locations."""
  return str(error).split(" [")[0].replace("\n", " ")
