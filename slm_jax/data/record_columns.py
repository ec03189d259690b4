"""Which columns of a data set hold what, and how a value is taken out of a record."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping
from typing import Any


class BadRecord(Exception):
  """A record that cannot be used; the text says why and names neither file nor line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
  """The name of each column in the data; "" if the data have none.

  A name with dots, as in "translations.es", reaches into nested objects.
  """

  audio: str = "audio"  # path of a file, its bytes, or samples
  text: str = "text"  # what is said
  id: str = "id"
  speaker: str = "speaker"
  language: str = "language"  # spoken
  translation: str = "translation"
  target_language: str = "target_language"  # of the translation
  context: str = "context"  # e.g. names that may occur
  biasing_words: str = ""  # rare words of the text, with | or commas between them
  instruction: str = "instruction"
  sample_rate: str = "sample_rate"  # in Hz, of the file or the samples
  duration: str = "duration"  # in s

  @classmethod
  def of(cls, columns: Mapping[str, str]) -> "Columns":
    """Raises ValueError for a key that is none of the fields."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in columns:
      if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {known}"
        raise ValueError(f"columns={dict(columns)}: no {name!r} is known; {hint}")
    return cls(**columns)


def value_of(record: Mapping[str, Any], column: str) -> Any:
  """The value of a column, None if the record has none."""
  if not column or column in record:
    return record.get(column)
  value: Any = record
  for part in column.split("."):
    if not isinstance(value, Mapping) or part not in value:
      return None
    value = value[part]
  return value


def is_missing(value: Any) -> bool:
  """Whether a record has no value there: None, or the NaN that pandas writes for it."""
  return value is None or (isinstance(value, numbers.Real) and value != value)


def text_of(record: Mapping[str, Any], column: str) -> str:
  """The text of a column without white space at its ends, "" if there is none.

  Lists of text are joined by commas; numbers are written out.

  Raises:
    BadRecord: bytes that are not UTF-8, or a value that is no text.
  """
  value = value_of(record, column)
  if is_missing(value):
    return ""
  if isinstance(value, bytes):
    try:
      value = value.decode()
    except UnicodeDecodeError as error:
      raise BadRecord(f"field {column!r} is not UTF-8 at its byte {error.start}") from error
  if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
    value = ", ".join(value)
  if isinstance(value, numbers.Real) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str):
    raise BadRecord(f"field {column!r} is {type(value).__name__}, expected a string")
  if "\ufffd" in value:
    raise BadRecord(f"field {column!r} holds U+FFFD: it was decoded by a wrong character set")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise BadRecord(f"field {column!r} holds half of a surrogate pair, no character") from error
  return value.strip()


def number_of(record: Mapping[str, Any], column: str) -> float | None:
  """The number in a column, None if there is none; raises BadRecord for anything else."""
  value = value_of(record, column)
  if is_missing(value) or (isinstance(value, str) and not value.strip()):
    return None
  try:
    number = float(value)
  except (OverflowError, TypeError, ValueError):
    number = math.inf
  if not math.isfinite(number):
    raise BadRecord(f"field {column!r} is {value!r}, expected a number")
  return number
