"""The image that a job runs: the checkout with its locked dependencies (Dockerfile)."""

import fnmatch
from pathlib import Path

from slm_jax.errors import UserError
from slm_jax.launch.commands import Command


def build_commands(image: str, checkout: Path) -> list[Command]:
  """Builds the image out of the checkout and pushes it."""
  if not (checkout / "Dockerfile").is_file():
    raise UserError(f"{checkout} has no Dockerfile; --build needs a checkout of slm_jax")
  # TPU hosts are x86-64, whatever this machine is.
  build = ("docker", "build", "--platform=linux/amd64", f"--tag={image}", str(checkout))
  return [Command(args=build), Command(args=("docker", "push", image))]


def path_in_image(path: Path, checkout: Path) -> str:
  """Where the image has a file or folder of the checkout, relative to its working directory.

  Raises:
    UserError: it lies outside the checkout or is left out by .dockerignore, so no image has it.
  """
  try:
    inside = path.resolve().relative_to(checkout.resolve())
  except ValueError as error:
    raise UserError(
      f"{path} is outside {checkout.resolve()}, of which the job's image is made; copy it there"
    ) from error
  if pattern := ignored_by(inside, checkout):
    raise UserError(
      f"{path} is not in the job's image: .dockerignore leaves out {pattern}; move it elsewhere in the checkout"
    )
  return str(inside)


def ignored_by(path: Path, checkout: Path) -> str | None:
  """The line of .dockerignore that covers `path`, given relative to the checkout, or a folder that holds it.

  Of Docker's patterns: names, `*` and a leading `**/`; a line with `!` would not be understood.
  """
  file = checkout / ".dockerignore"
  for line in file.read_text().splitlines() if file.is_file() else ():
    pattern = line.removeprefix("**/")
    if not pattern or pattern.startswith("#"):
      continue
    for covered in (path, *path.parents):
      if fnmatch.fnmatchcase(covered.name if pattern != line else str(covered), pattern):
        return line
  return None
