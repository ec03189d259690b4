"""Published archives (tar, tar.gz, zip, or a folder of the same content), read without unpacking."""

import bz2
import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from slm_jax.errors import UserError

# Lists of checksums as publishers put them beside their archives → hash.
CHECKSUM_LISTS = {
  "md5sum.txt": "md5",
  "md5sums.txt": "md5",
  "sha256sum.txt": "sha256",
  "sha256sums.txt": "sha256",
  "SHA256SUMS": "sha256",
}
_DAMAGE = (
  tarfile.TarError,
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  OSError,
  RuntimeError,  # an encrypted zip
)


def members(path: str | os.PathLike[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
  """Yields (name, function that reads the content) of an archive's files, in the order stored.

  Names are relative, with "/". A file must be read before the next one is asked for; what is not
  read is skipped. A folder stands for an archive that has been unpacked, its files sorted by name.
  Files that only macOS knows ("._name", "__MACOSX/", ".DS_Store") are left out.

  Raises:
    UserError: the archive does not exist, is of no known kind, is damaged or cut short, or has a
      member that would lie outside of the folder it is unpacked to, or a link.
  """
  file = Path(path)
  if not file.exists():
    raise UserError(f"archive {file} does not exist; download it or correct manual_dir")
  if file.is_dir():
    found = _folder_members(file)
  elif zipfile.is_zipfile(file):
    found = _zip_members(file)
  else:
    found = _tar_members(file)
  last = "its beginning"
  while True:
    with _damage_named(file, last):
      name, content = next(found, ("", None))
    if content is None:
      return
    if not _is_litter(name):
      yield name, functools.partial(_read, content, file, last)
    last = name


def _read(content: IO[bytes], archive: Path, last: str) -> bytes:
  with _damage_named(archive, last):
    return content.read()


@contextlib.contextmanager
def _damage_named(archive: Path, last: str) -> Iterator[None]:
  try:
    yield
  except _DAMAGE as error:
    reason = str(error) or type(error).__name__
    raise UserError(
      f"archive {archive} cannot be read on after {last} ({reason}), expected tar, tar.gz or zip; "
      "download it again"
    ) from error


def read_text(path: str | os.PathLike[str], suffix: str = "") -> str:
  """UTF-8 text of a file: plain, .gz, or the only member of an archive that ends on `suffix`.

  Raises:
    UserError: no such file or member, several of them, damaged, or not UTF-8.
  """
  file = Path(path)
  name = file.name
  if name.endswith((".tar", ".tar.gz", ".tgz", ".zip")) or file.is_dir():
    found = {member: read() for member, read in members(file) if member.endswith(suffix)}
    if len(found) != 1:
      raise UserError(f"{file} holds {len(found)} files *{suffix}, expected one; download it again")
    [(member, data)] = found.items()
    return decode(data, f"{file}:{member}")
  try:
    with gzip.open(file, "rb") if name.endswith(".gz") else open(file, "rb") as opened:
      return decode(opened.read(), str(file))
  except FileNotFoundError as error:
    raise UserError(f"{file} does not exist; download it or correct manual_dir") from error
  except (EOFError, zlib.error, OSError) as error:
    raise UserError(f"{file} cannot be read ({error}); download it again") from error


def decode(data: bytes, name: str) -> str:
  """UTF-8 bytes → text without a byte order mark; raises UserError where they are not UTF-8."""
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{name} is not UTF-8 at byte {error.start}; download it again or convert it to UTF-8"
    ) from error


def verify(path: str | os.PathLike[str]) -> bool:
  """Checks a file against the publisher's list of checksums, if one lies beside it.

  Returns:
    Whether a list names the file.

  Raises:
    UserError: the file is not the one that the list was made of.
  """
  file = Path(path)
  for list_name, algorithm in CHECKSUM_LISTS.items():
    listing = file.parent / list_name
    if not (listing.is_file() and file.is_file()):
      continue
    for line in listing.read_text(errors="replace").splitlines():
      digest, _, name = line.strip().partition(" ")
      if PurePosixPath(name.strip().lstrip("*")).name != file.name:
        continue
      with open(file, "rb") as opened:
        actual = hashlib.file_digest(opened, algorithm).hexdigest()
      if actual != digest.lower():
        raise UserError(
          f"{file} has {algorithm} {actual}, {listing} says {digest.lower()}; download it again"
        )
      return True
  return False


def _folder_members(folder: Path) -> Iterator[tuple[str, IO[bytes]]]:
  for directory, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(names):
      path = Path(directory, name)
      with open(path, "rb") as opened:
        yield path.relative_to(folder).as_posix(), opened


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      _check_name(path, member.filename)
      if not member.is_dir():
        with archive.open(member) as opened:
          yield member.filename, opened


def _tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
  # "|": read once from start to end, as nothing else is quick in a compressed archive.
  with (
    contextlib.closing(_tar_stream(path)) as stream,
    tarfile.open(fileobj=stream, mode="r|") as t,
  ):
    for member in t:
      _check_name(path, member.name)
      if member.issym() or member.islnk():
        raise UserError(
          f"archive {path}: member {member.name!r} is a link to {member.linkname!r}, expected plain "
          "files only; do not use this archive"
        )
      opened = t.extractfile(member) if member.isfile() else None
      if opened is not None:
        yield str(PurePosixPath(member.name)), opened
    # What follows the end mark is not looked at by tarfile, yet a file cut short shows there only.
    while stream.read(1 << 20):
      pass


def _tar_stream(path: Path) -> Any:
  with open(path, "rb") as opened:
    head = opened.read(6)
  if head.startswith(b"\x1f\x8b"):
    return gzip.open(path, "rb")
  if head.startswith(b"BZh"):
    return bz2.open(path, "rb")
  if head.startswith(b"\xfd7zXZ\x00"):
    return lzma.open(path, "rb")
  return open(path, "rb")


def _check_name(archive: Path, name: str) -> None:
  path = PurePosixPath(name.replace("\\", "/"))
  if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
    raise UserError(
      f"archive {archive}: member {name!r} would be written outside of the folder it is unpacked "
      "to; do not use this archive"
    )


def _is_litter(name: str) -> bool:
  parts = PurePosixPath(name).parts
  return not parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store" or "__MACOSX" in parts
