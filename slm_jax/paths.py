"""Folders on disk or in a bucket."""

from etils import epath


def run_folder(path: str | epath.PathLike) -> epath.Path:
  """A path that stays what it is when the working directory changes; of a bucket, `gs://…`, as given."""
  found = epath.Path(path)
  return found if "://" in str(found) else found.absolute()
