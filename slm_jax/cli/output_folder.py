"""The folder that --output names."""

from pathlib import Path

from slm_jax.errors import UserError


def output_folder(path: str | Path) -> Path:
  """Makes the folder if it is not there; raises UserError where it cannot be."""
  try:
    Path(path).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"--output={path} cannot be made a folder ({error.strerror}); name another"
    ) from error
  return Path(path)


def check_output_folder(path: str | Path) -> None:
  """Raises UserError where `output_folder` would; leaves no folder there. For what is written much later."""
  there = Path(path).exists()
  folder = output_folder(path)
  if not there:
    folder.rmdir()
