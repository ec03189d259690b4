"""Folders that appear when they are whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from slm_jax.errors import UserError


@contextlib.contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
  """A folder to write into, which becomes `output` after the block; after an error nothing is left.

  Raises:
    UserError: `output` exists and is not an empty folder.
  """
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f"--output={output} exists and is not empty; choose another folder")
  partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
  partial.mkdir(parents=True)
  try:
    yield partial
    os.replace(partial, output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
