"""Tables of records in TFRecord, ArrayRecord and Parquet files."""

import abc
import bisect
import contextlib
import dataclasses
import functools
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow
import pyarrow.parquet
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordReader

from slm_jax.data.record_tables import Record, RecordTable, file_digest
from slm_jax.errors import UserError

_LENGTH_BYTES = 12  # of a TFRecord: length uint64, its checksum uint32
_CHECKSUM_BYTES = 4


@dataclasses.dataclass(frozen=True)
class _File:
  """What is known of a file: its rows, and what is wrong with those that follow them."""

  rows: int
  problem: str = ""
  lost: int | None = None  # rows behind the problem; None where it cannot be told


@dataclasses.dataclass(frozen=True)
class FilesTable(RecordTable):
  """Rows of several files, one file after the other; a pattern (`*`, `?`) stands for its matches.

  A file that cannot be read, or not to its end, has one more row, which is a problem. It stands for
  as many rows as are lost; where that cannot be told, for as many as the other files have on
  average.
  """

  patterns: tuple[str, ...]

  @property
  def folder(self) -> Path:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self.paths[0].parent

  @functools.cached_property
  def paths(self) -> list[Path]:
    """The files in order. Raises UserError: a pattern matches none."""
    found = []
    for pattern in self.patterns:
      matches = sorted(glob.glob(pattern, recursive=True))
      if not matches:
        raise UserError(f"no file is {pattern}; check the source (relative to {os.getcwd()!r})")
      found += map(Path, matches)
    return found

  def __len__(self) -> int:
    return self._starts()[-1]

  def records(self, rows: Sequence[int]) -> Iterator[Record]:
    starts = self._starts()
    for number, group in itertools.groupby(rows, lambda row: bisect.bisect_right(starts, row) - 1):
      path, file = self.paths[number], self._file(number)
      wanted = [row - starts[number] for row in group]
      inside = [row for row in wanted if row < file.rows]
      for row, (fields, problem) in zip(inside, self._read(path, inside), strict=True):
        yield Record(name=f"{path}:{row}", key=f"{path.name}:{row}", fields=fields, problem=problem)
      if len(inside) < len(wanted):
        lost = self._mean_rows() if file.lost is None else file.lost
        yield Record(name=str(path), key=path.name, problem=file.problem, lost=lost)

  def keys(self) -> Iterator[str]:
    for number, path in enumerate(self.paths):
      file = self._file(number)
      yield from (f"{path.name}:{row}" for row in range(file.rows + bool(file.problem)))

  def describe(self) -> dict[str, Any]:
    return {"kind": type(self).__name__, "files": {p.name: file_digest(p) for p in self.paths}}

  def _file(self, number: int) -> _File:
    path = self.paths[number]
    try:
      status = os.stat(path)
    except OSError as error:
      raise UserError(f"{path} cannot be read ({error.strerror}); check the source") from error
    return _inspected(self._inspect, path, status.st_mtime_ns, status.st_size)

  def _starts(self) -> list[int]:
    files = [self._file(number) for number in range(len(self.paths))]
    return list(itertools.accumulate((f.rows + bool(f.problem) for f in files), initial=0))

  def _mean_rows(self) -> int:
    files = [self._file(number) for number in range(len(self.paths))]
    sizes = [file.rows for file in files if not file.problem]
    return max(1, round(sum(sizes) / len(sizes))) if sizes else 1

  @staticmethod
  @abc.abstractmethod
  def _inspect(path: Path) -> _File:
    """Counts the rows without reading them, where the format allows it."""

  @abc.abstractmethod
  def _read(self, path: Path, rows: list[int]) -> Iterator[tuple[dict[str, Any], str]]:
    """Fields and problem of each of these rows of a file."""


@functools.lru_cache(maxsize=4096)
def _inspected(inspect, path: Path, modified: int, size: int) -> _File:
  """`modified` and `size` make a changed file another one."""
  file = inspect(path)
  # An absurd count would be an absurd amount of memory.
  return file if file.rows <= size else _File(0, f"is damaged: {file.rows} rows in {size} bytes")


class TFRecordTable(FilesTable):
  """`tf.train.Example`s in TFRecord files; every checksum is checked."""

  @staticmethod
  def _inspect(path: Path) -> _File:
    return _tfrecord_index(path, *_version(path))[0]

  def _read(self, path: Path, rows: list[int]) -> Iterator[tuple[dict[str, Any], str]]:
    _, starts = _tfrecord_index(path, *_version(path))
    with open(path, "rb") as file:
      for row in rows:
        file.seek(int(starts[row]) + _LENGTH_BYTES)
        size = int(starts[row + 1] - starts[row]) - _LENGTH_BYTES - _CHECKSUM_BYTES
        data = file.read(size)
        if _masked_crc(data) != int.from_bytes(file.read(_CHECKSUM_BYTES), "little"):
          yield {}, "the record's checksum is wrong: its bytes were changed"
        else:
          yield _example_fields(data)


@functools.lru_cache(maxsize=256)
def _tfrecord_index(path: Path, modified: int, size: int) -> tuple[_File, np.ndarray]:
  """A TFRecord file's facts, and where each record starts, with the end of the last."""
  starts, problem = [0], ""
  with open(path, "rb") as file:
    if file.read(2) == b"\x1f\x8b":
      return _File(0, "is compressed; write it without compression"), np.array([0])
    while starts[-1] < size:
      file.seek(starts[-1])
      head = file.read(_LENGTH_BYTES)
      stop = starts[-1] + _LENGTH_BYTES + int.from_bytes(head[:8], "little") + _CHECKSUM_BYTES
      if len(head) == _LENGTH_BYTES and _masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
        problem = "is damaged: no record can be found"
      elif len(head) < _LENGTH_BYTES or stop > size:
        problem = "is cut off"
      if problem:
        problem += f" after record {len(starts) - 1}, at byte {starts[-1]} of {size}"
        break
      starts.append(stop)
  rows = len(starts) - 1
  left = size - starts[-1]
  lost = max(1, round(left * rows / starts[-1])) if rows else None
  return _File(rows, problem, lost), np.asarray(starts, np.int64)


class ArrayRecordTable(FilesTable):
  """`tf.train.Example`s in ArrayRecord files."""

  @staticmethod
  def _inspect(path: Path) -> _File:
    try:
      reader = ArrayRecordReader(str(path))
      rows = reader.num_records()
      reader.close()  # raises for a reader that could not open its file
    except (RuntimeError, ValueError) as error:
      return _File(0, f"is no whole ArrayRecord file ({_first_line(error)}): cut off or damaged")
    return _File(rows)

  def _read(self, path: Path, rows: list[int]) -> Iterator[tuple[dict[str, Any], str]]:
    if not rows:
      return
    reader = ArrayRecordReader(str(path))
    try:
      for row in rows:
        try:
          (data,) = reader.read([row])
        except (RuntimeError, ValueError, IndexError) as error:
          yield {}, f"cannot be read ({_first_line(error)})"
        else:
          yield _example_fields(data)
    finally:
      with contextlib.suppress(RuntimeError):  # the reads have told what is wrong
        reader.close()


class ParquetTable(FilesTable):
  """Parquet files as the `datasets` library writes them: audio is a struct of `bytes` and `path`."""

  @staticmethod
  def _inspect(path: Path) -> _File:
    try:
      with pyarrow.parquet.ParquetFile(path) as file:
        return _File(file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
      return _File(0, f"is no whole Parquet file ({_first_line(error)}): cut off or damaged")

  cheap_texts = True

  def texts(self) -> Iterator[Record]:
    for number, path in enumerate(self.paths):
      file = self._file(number)
      if file.rows:
        for row, (fields, problem) in enumerate(self._read(path, range(file.rows), light=True)):
          yield Record(
            name=f"{path}:{row}", key=f"{path.name}:{row}", fields=fields, problem=problem
          )
      if file.problem:
        yield Record(name=str(path), key=path.name, problem=file.problem)

  def _read(
    self, path: Path, rows: Sequence[int], light: bool = False
  ) -> Iterator[tuple[dict[str, Any], str]]:
    """`light`: without the columns that may hold audio."""
    if not rows:
      return
    with pyarrow.parquet.ParquetFile(path) as file:
      columns = [f.name for f in file.schema_arrow if not (light and _is_heavy(f.type))]
      sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
      starts = list(itertools.accumulate(sizes, initial=0))
      for group, members in itertools.groupby(rows, lambda r: bisect.bisect_right(starts, r) - 1):
        try:
          table = file.read_row_group(group, columns=columns)
          table.validate()
        except (pyarrow.ArrowException, OSError, IndexError) as error:
          problem = f"row group {group} is damaged ({_first_line(error)})"
          yield from (({}, problem) for _ in members)
          continue
        for row in members:
          yield _row(table, row - starts[group])


def _row(table: pyarrow.Table, row: int) -> tuple[dict[str, Any], str]:
  fields = {}
  if row >= table.num_rows:
    return {}, "the row is missing: its group is shorter than the file states"
  for name in table.column_names:
    try:
      fields[name] = table[name][row].as_py()
    except UnicodeDecodeError as error:
      return {}, f"field {name!r} is not UTF-8 at its byte {error.start}"
  return fields, ""


def _is_heavy(kind: pyarrow.DataType) -> bool:
  """Whether a column of this type may hold audio."""
  types = pyarrow.types
  if types.is_struct(kind):
    return any(_is_heavy(kind.field(i).type) for i in range(kind.num_fields))
  if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
    return not types.is_string(kind.value_type)
  return types.is_binary(kind) or types.is_large_binary(kind)


def _example_fields(data: bytes) -> tuple[dict[str, Any], str]:
  """A serialised `tf.train.Example` → name → bytes, number or array, and the problem with it."""
  try:
    features = tf.train.Example.FromString(data).features.feature
  except Exception as error:  # protobuf's own class differs between its implementations
    return {}, f"is no tf.train.Example ({_first_line(error)})"
  fields: dict[str, Any] = {}
  for name, feature in features.items():
    kind = feature.WhichOneof("kind")
    if kind == "bytes_list":
      values: Any = list(feature.bytes_list.value)
    elif kind == "float_list":
      values = np.asarray(feature.float_list.value, np.float32)
    elif kind == "int64_list":
      values = np.asarray(feature.int64_list.value, np.int64)
    else:
      continue
    fields[name] = values[0] if len(values) == 1 else values
  return fields, ""


def _masked_crc(data: bytes) -> int:
  """The checksum of TFRecord: CRC-32C, rotated by 15 bits, plus a constant."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _version(path: Path) -> tuple[int, int]:
  status = os.stat(path)
  return status.st_mtime_ns, status.st_size


def _first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
