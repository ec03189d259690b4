"""Tables of speech records: manifests (JSONL, TSV, CSV) and folders of recordings with transcripts."""

import abc
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_jax.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".aiff", ".aif")
# Bytes at each end of a large file that its fingerprint is made of, beside its size.
_SAMPLED_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """One row: its fields, or the reason why there are none.

  Attributes:
    name: where it stands, e.g. "data/train.jsonl:12".
    key: names the row in its data set wherever that lies, e.g. "train:12".
    fields: column → value.
    problem: "" or what is wrong with the row.
    lost: rows that the problem stands for.
  """

  name: str
  key: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  problem: str = ""
  lost: int = 1


class RecordTable(abc.ABC):
  """Rows of a data set, in a fixed order, addressable by number.

  Attributes:
    folder: relative paths of audio files start here.
    cheap_texts: whether `texts` can be had without reading the audio as well.
  """

  folder: Path = Path(".")
  cheap_texts: bool = False

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of rows, those with a problem among them. Raises UserError: the data are not there."""

  @abc.abstractmethod
  def records(self, rows: Sequence[int]) -> Iterator[Record]:
    """The rows of these growing numbers, with all their fields."""

  def texts(self) -> Iterator[Record]:
    """All rows, without their audio where that is cheaper."""
    return self.records(range(len(self)))

  def keys(self) -> Iterator[str]:
    """The `key` of all rows."""
    return (record.key for record in self.texts())

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """JSON-ready facts that decide the rows."""


@dataclasses.dataclass(frozen=True)
class ManifestTable(RecordTable):
  """A text file that names an audio file and its text in each line.

  `.jsonl` or `.json` has a JSON object a line; `.tsv` and `.csv` have a header line. TSV has no
  quoting: a quotation mark is one.
  """

  cheap_texts = True

  path: Path

  @property
  def folder(self) -> Path:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self.path.parent

  def __len__(self) -> int:
    return len(self._rows())

  def records(self, rows: Sequence[int]) -> Iterator[Record]:
    found = self._rows()
    return (found[row] for row in rows)

  def describe(self) -> dict[str, Any]:
    self._rows()  # raises if it is not there
    return {"kind": "manifest", "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}

  def _rows(self) -> list[Record]:
    try:
      status = os.stat(self.path)
    except OSError as error:
      raise UserError(
        f"manifest {self.path} cannot be read ({error.strerror}); expected a JSONL, TSV or CSV "
        "file that names audio files"
      ) from error
    return _read_manifest(self.path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _read_manifest(path: Path, modified: int, size: int) -> list[Record]:
  """`modified` and `size` make a changed file another one."""
  lines = enumerate(path.read_bytes().split(b"\n"), start=1)
  numbered = [(number, line.removesuffix(b"\r")) for number, line in lines if line.strip()]
  if path.suffix.lower() in (".tsv", ".csv"):
    parse = _table_parser(path, numbered)
    numbered = numbered[1:]
  else:
    parse = _parse_json
  if not numbered:
    raise UserError(f"manifest {path} is empty; expected one record a line")
  rows = []
  for number, line in numbered:
    fields, problem = parse(line.removeprefix(b"\xef\xbb\xbf"))
    name, key = f"{path}:{number}", f"{path.stem}:{number}"
    rows.append(Record(name=name, key=key, fields=fields, problem=problem))
  return rows


def _parse_json(line: bytes) -> tuple[Mapping[str, Any], str]:
  try:
    record = json.loads(line.decode())
  except UnicodeDecodeError as error:
    return {}, f"byte {error.start} of the line is not UTF-8"
  except json.JSONDecodeError as error:
    return {}, f"not JSON ({error.msg} at column {error.colno})"
  except (RecursionError, ValueError) as error:  # nested too deep; an integer of too many digits
    return {}, f"not JSON ({type(error).__name__})"
  if not isinstance(record, dict):
    return {}, f"expected a JSON object, found {type(record).__name__}"
  return record, ""


def _table_parser(path: Path, numbered: list[tuple[int, bytes]]):
  comma = path.suffix.lower() == ".csv"

  def cells(line: bytes) -> list[str]:
    text = line.decode()
    if not comma:
      return text.split("\t")
    try:
      return next(csv.reader(io.StringIO(text), strict=True))
    except (csv.Error, StopIteration) as error:
      raise ValueError(f"not CSV ({error}); a field may not go over several lines") from error

  try:
    header = cells(numbered[0][1].removeprefix(b"\xef\xbb\xbf")) if numbered else []
  except ValueError as error:
    raise UserError(f"manifest {path}: its header line cannot be read ({error})") from error
  if len(set(header)) < len(header):
    raise UserError(f"manifest {path}: its header line {header} names a column twice; rename one")

  def parse(line: bytes) -> tuple[Mapping[str, Any], str]:
    try:
      values = cells(line)
    except UnicodeDecodeError as error:
      return {}, f"byte {error.start} of the line is not UTF-8"
    except ValueError as error:
      return {}, str(error)
    if len(values) != len(header):
      return {}, f"{len(values)} fields, the header names {len(header)}"
    return dict(zip(header, values, strict=True)), ""

  return parse


@dataclasses.dataclass(frozen=True)
class FolderTable(RecordTable):
  """Recordings below a folder, each beside its transcript: `name.wav` and `name.txt`."""

  cheap_texts = True

  path: Path

  @property
  def folder(self) -> Path:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self.path

  def __len__(self) -> int:
    return len(self._names())

  def records(self, rows: Sequence[int]) -> Iterator[Record]:
    names = self._names()
    return (self._record(*names[row]) for row in rows)

  def describe(self) -> dict[str, Any]:
    digest = hashlib.sha256()
    for stem, audio in self._names():
      for name in (audio, f"{stem}.txt"):
        path = self.path / name
        line = f"{name} {path.stat().st_size if path.is_file() else None}\n"
        digest.update(os.fsencode(line))
    return {"kind": "folder", "sha256": digest.hexdigest()}

  def _names(self) -> list[tuple[str, str]]:
    """Path of each recording or transcript without its suffix, and of its audio, "" if none."""
    if self.path.is_file():
      raise UserError(
        f"{self.path} is a file of an unknown kind; expected .jsonl, .tsv, .csv, .parquet, .tfrecord, "
        ".array_record or a folder"
      )
    if not self.path.is_dir():
      raise UserError(f"folder {self.path} does not exist; expected recordings with transcripts")
    return _list_folder(self.path)

  def _record(self, stem: str, audio: str) -> Record:
    path = self.path / (audio or f"{stem}.txt")
    identity = _printable(stem)
    record = Record(name=_printable(str(path)), key=identity)
    if not audio:
      return dataclasses.replace(record, problem=f"no recording {stem}.wav stands beside it")
    try:
      text = (self.path / f"{stem}.txt").read_bytes()
    except OSError as error:
      reason = f"transcript {stem}.txt is missing ({error.strerror})"
      return dataclasses.replace(record, problem=reason)
    fields = {"audio": audio, "text": text.removeprefix(b"\xef\xbb\xbf"), "id": identity}
    return dataclasses.replace(record, fields=fields)


def _printable(name: str) -> str:
  """A file's name as text; bytes of it that are not UTF-8 are written out."""
  return os.fsencode(name).decode(errors="backslashreplace")


@functools.lru_cache(maxsize=16)
def _list_folder(path: Path) -> list[tuple[str, str]]:
  found: dict[str, str] = {}
  for folder, folders, names in os.walk(path):
    folders.sort()
    for name in sorted(names):
      if name.startswith("._"):  # macOS's notes beside a file
        continue
      file = Path(folder, name).relative_to(path)
      stem = str(file.with_suffix(""))
      if file.suffix.lower() in AUDIO_SUFFIXES:
        if found.get(stem):
          raise UserError(
            f"{path}: {file} and {found[stem]} share one transcript; keep one of them"
          )
        found[stem] = str(file)
      elif file.suffix == ".txt":
        found.setdefault(stem, "")
  if not any(found.values()):
    raise UserError(f"folder {path} holds no recordings ({', '.join(AUDIO_SUFFIXES)})")
  return sorted(found.items())


def file_digest(path: Path) -> str:
  """SHA-256 of a file's size, beginning and end: cheap for a large one."""
  size = path.stat().st_size
  with open(path, "rb") as file:
    head = file.read(_SAMPLED_BYTES)
    file.seek(max(0, size - _SAMPLED_BYTES))
    return hashlib.sha256(f"{size} ".encode() + head + file.read()).hexdigest()
