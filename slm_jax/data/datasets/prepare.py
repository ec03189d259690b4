"""Prepares TFDS data sets: python -m slm_jax.data.datasets.prepare covost2/de_en --manual_dir=/data/archives

Does what `tfds build` does, for the project's builders and TFDS's own alike, and without Apache
Beam, which `tfds build` cannot start without.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

# Importing a builder's module makes its name known to TFDS.
from slm_jax.data.datasets import registration  # noqa: F401
from slm_jax.errors import UserError


def prepare(
  name: str, *, data_dir: str | None = None, manual_dir: str | None = None, max_shard_mib: int = 256
) -> Path:
  """Makes the records of a data set and returns their folder; what is prepared already stays.

  Args:
    name: TFDS's, e.g. "fleurs/de_de" or "librispeech/lazy_decode".
    data_dir: default ~/tensorflow_datasets.
    manual_dir: of archives that are there already; default <data_dir>/downloads/manual.
    max_shard_mib: size of a file of records.

  Raises:
    UserError: no such data set, an archive is missing, damaged, or not the one published.
  """
  config = tfds.download.DownloadConfig(manual_dir=manual_dir, max_shard_size=max_shard_mib * 2**20)
  try:
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare(download_config=config)
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise UserError(f"data set {name!r} cannot be prepared: {str(error)[:300]}") from error
  except (
    NonMatchingChecksumError,
    tfds.download.DownloadError,
    OSError,
  ) as error:
    raise UserError(f"data set {name!r}, download: {str(error)[:300]}") from error
  return Path(builder.data_dir)


def main(arguments: Sequence[str] | None = None) -> int:
  """Prepares the data sets named; returns the status to exit with."""
  parser = argparse.ArgumentParser(
    prog="python -m slm_jax.data.datasets.prepare",
    description="Prepare TFDS data sets; docs/datasets.md says what each needs.",
  )
  parser.add_argument("names", nargs="+", metavar="NAME", help="e.g. fleurs/de_de covost2/de_en")
  parser.add_argument("--data_dir", help="of prepared data, default ~/tensorflow_datasets")
  parser.add_argument("--manual_dir", help="of archives, default <data_dir>/downloads/manual")
  parsed = parser.parse_args(arguments)
  for name in parsed.names:
    try:
      folder = prepare(name, data_dir=parsed.data_dir, manual_dir=parsed.manual_dir)
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2
    print(f"{name}: {folder}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
