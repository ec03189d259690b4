"""What a user calls a data set, as tables of records and their splits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from slm_jax.data.record_files import ArrayRecordTable, ParquetTable, TFRecordTable
from slm_jax.data.record_source import Split
from slm_jax.data.record_tables import FolderTable, ManifestTable, RecordTable
from slm_jax.data.tfds_table import TfdsTable

Files = str | Path | Sequence[str | Path]
SplitSpec = Files | Mapping[str, Files]

DEFAULT_SHARES = {"train": 0.95, "validation": 0.05}
TFDS = "tfds:"
_MANIFESTS = (".jsonl", ".json", ".tsv", ".csv")
# "train.tfrecord-00000-of-00004" and "train.tfrecord*" are TFRecord files as well.
_RECORD_FILES = {
  r"(?i)\.parquet$": ParquetTable,
  r"(?i)\.(array_?record)[^./]*$": ArrayRecordTable,
  r"(?i)\.(tf_?records?)[^./]*$": TFRecordTable,
}


def open_table(source: Files) -> RecordTable:
  """The table of a path, a pattern, or a list of them, told by its ending; reads nothing yet.

  Raises ValueError for files of several kinds, or for several of a kind that is one file.
  """
  sources = [source] if isinstance(source, (str, Path)) else list(source)
  if not sources or any(str(part).startswith(TFDS) for part in sources):
    raise ValueError(f"source={sources}: expected files; splits of tfds: are named by splits")
  names = [str(Path(part).expanduser()) for part in sources]
  for pattern, table in _RECORD_FILES.items():
    matching = [re.search(pattern, name) is not None for name in names]
    if all(matching):
      return table(tuple(names))
    if any(matching):
      raise ValueError(f"source={names} mixes kinds of files; register them apart")
  if len(names) > 1:
    raise ValueError(f"source={names}: a list is of .parquet, .tfrecord or .array_record files")
  path = Path(names[0])
  return ManifestTable(path) if path.suffix.lower() in _MANIFESTS else FolderTable(path)


def make_splits(
  source: SplitSpec,
  splits: Mapping[str, float | str | Mapping[str, str | Sequence[str]]] | None,
  *,
  split_by: str,
  where: Mapping[str, str | Sequence[str]],
) -> dict[str, Split]:
  """Name → rows; see `speech_tasks.register_speech_task`. Raises ValueError as it does."""
  names = source if isinstance(source, Mapping) else DEFAULT_SHARES if splits is None else splits
  # They become names of files.
  if not names or not all(
    isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names
  ):
    raise ValueError(
      f"splits {list(names)}: each needs a name of letters, digits, '_', '.' and '-'"
    )
  everywhere = _values(where)
  if isinstance(source, Mapping):
    if splits is not None or split_by:
      raise ValueError("a source that names each split's files takes neither splits nor split_by")
    return {
      name: Split(table=open_table(files), where=everywhere) for name, files in source.items()
    }
  if isinstance(source, str) and source.startswith(TFDS):
    return _tfds_splits(source, splits, everywhere)
  chosen = DEFAULT_SHARES if splits is None else splits
  table = open_table(source)
  shares = {name: share for name, share in chosen.items() if isinstance(share, (int, float))}
  if shares and len(shares) < len(chosen):
    raise ValueError(f"splits={dict(chosen)} mixes shares and values; use one of them")
  if not shares:
    if split_by:
      raise ValueError(f"{split_by=} goes with shares, not with splits={dict(chosen)}")
    return {
      name: Split(table=table, where=everywhere | _values(_mapping(name, selected)))
      for name, selected in chosen.items()
    }
  if not (abs(sum(shares.values()) - 1) <= 1e-6 and min(shares.values()) > 0):
    raise ValueError(f"splits={shares}: shares must be positive and add up to 1")
  found, low = {}, 0.0
  for name, share in shares.items():
    high = low + share if len(found) < len(shares) - 1 else 1.0
    found[name] = Split(table=table, where=everywhere, share=(low, high), split_by=split_by)
    low = high
  return found


def _tfds_splits(source: str, splits, where: Mapping[str, tuple[str, ...]]) -> dict[str, Split]:
  chosen = {name: name for name in DEFAULT_SHARES} if splits is None else splits
  if not all(isinstance(name, str) for name in chosen.values()):
    raise ValueError(f"splits={dict(chosen)}: of tfds: each is one of TFDS's, e.g. 'train[:90%]'")
  name = source.removeprefix(TFDS)
  if not name:
    raise ValueError(f"{source=} names no data set; expected e.g. 'tfds:fleurs/de_de'")
  return {split: Split(table=TfdsTable(name, part), where=where) for split, part in chosen.items()}


def _mapping(split: str, selected) -> Mapping[str, str | Sequence[str]]:
  if not isinstance(selected, Mapping):
    raise ValueError(f"splits: {split!r} is {selected!r}, expected a share or {{column: values}}")
  return selected


def _values(where: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
  """Values as the text that records have; a number may stand for it."""
  return {
    column: tuple(map(str, [values] if isinstance(values, (str, int, float)) else values))
    for column, values in where.items()
  }
