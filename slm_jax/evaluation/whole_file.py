"""Files that appear when they are whole: a kill at any moment leaves the old one or the new one."""

import os

from etils import epath


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a file, moved into place when complete, and the folder it is in."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    partial.write_bytes(content)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
