"""SHA256SUMS: the checksums of a folder's files, as `sha256sum --check` reads them."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from slm_jax.errors import UserError

SUMS = "SHA256SUMS"
_MAX_BYTES = 2**20
_LINE = re.compile(
  r"([0-9a-f]{64})  ((?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*)"
)


def write_sums(folder: Path) -> None:
  """Writes the checksums of all files that are in the folder."""
  files = sorted(file for file in folder.rglob("*") if file.is_file())
  lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
  (folder / SUMS).write_text("".join(lines))


def check_sums(folder: Path, expected: Collection[str]) -> None:
  """Raises UserError unless the folder's checksums are of the `expected` files at least, and each file has its own.

  Files that are not named are let be: hubs and people put theirs beside.
  """
  sums = _read_sums(folder)
  for name in [*expected, *sorted(sums.keys() - set(expected))]:
    if name not in sums or not (folder / name).is_file():
      where = "is missing" if name in sums else f"is not named in {SUMS}"
      raise UserError(f"{folder / name} {where}; export or download the folder again")
    if sha256(folder / name) != sums[name]:
      raise UserError(
        f"{folder / name} is damaged: it has not the checksum that {SUMS} gives; export or download the folder again"
      )


def sha256(path: Path) -> str:
  """Hex digest of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(folder: Path) -> dict[str, str]:
  """File's name → digest. No name leads out of the folder."""
  path = folder / SUMS
  if not path.is_file():
    raise UserError(f"{folder} is not a bundle: it has no {SUMS}; make one with slm_jax export")
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    lines = path.read_text("utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  sums = {}
  for line in lines:
    match = _LINE.fullmatch(line)
    if match is None:
      raise UserError(
        f"{path} is damaged: it has {line[:100]!r}, expected a SHA-256 and the name of a file in the folder"
      )
    sums[match[2]] = match[1]
  return sums
