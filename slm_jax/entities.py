"""Entities as bytes: names of people, places or things, each spelt in UTF-8.

Ids are those of SeqIO's and ByT5's byte vocabulary: 0 pads, 1 ends, a byte b is b + 3. Several entities
in one text are kept apart by `SEPARATOR`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slm_jax.errors import UserError

SEPARATOR = "|"
FIRST_BYTE_ID = 3
VOCAB_SIZE = 259
SEPARATOR_ID = ord(SEPARATOR) + FIRST_BYTE_ID


def encode_entities(texts: Sequence[str], length: int) -> np.ndarray:
  """int32 [number of texts, `length`], 0 past the end of each.

  Raises:
    UserError: a text that is empty, longer than `length` bytes, or holds the separator.
  """
  rows = np.zeros((len(texts), length), np.int32)
  for row, text in zip(rows, texts, strict=True):
    data = text.encode()
    if not data.strip():
      raise UserError("an entity is empty; leave it out")
    if len(data) > length:
      raise UserError(f"entity {text!r} has {len(data)} bytes, at most {length} fit; shorten it")
    if SEPARATOR in text:
      raise UserError(f"entity {text!r} holds {SEPARATOR!r}, which keeps entities apart")
    row[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + FIRST_BYTE_ID
  return rows


def read_entities(path: str | Path) -> list[str]:
  """The lines of a text file, without blank ones and repetitions, in order.

  Raises:
    UserError: a file that cannot be read, is not UTF-8, or lists nothing.
  """
  try:
    text = Path(path).read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise UserError(
      f"{str(path)!r} cannot be read: {error.strerror}; expected a text file, one entity a line"
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
  found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
  if not found:
    raise UserError(f"{path} lists no entity; expected one a line")
  return found
