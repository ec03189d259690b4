"""Folders that appear when they are whole."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from slm_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
  """A folder to write into, which becomes `output` after the block; after an error nothing is left.

  Raises:
    UserError: `output` exists and is not an empty folder, or no folder can be made there.
  """
  check_output(output)
  partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
  try:
    partial.mkdir(parents=True)
  except OSError as error:
    raise UserError(f"--output={output} cannot be made: {error.strerror}") from error
  try:
    yield partial
    os.replace(partial, output)
  except OSError as error:
    if error.errno not in _FULL:
      raise
    raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_output(output: Path) -> None:
  """Raises UserError if something is there already: before work is done that would be lost."""
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f"--output={output} exists and is not empty; choose another folder")
