"""Tables of records that TensorFlow Datasets has prepared."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from slm_jax.data.record_tables import Record, RecordTable
from slm_jax.errors import UserError


class TfdsTable(RecordTable):
  """A split of a prepared TFDS data set, in the order in which it is stored.

  The samples of a TFDS `Audio` feature come with its sample rate as the field `sample_rate`.
  """

  def __init__(self, name: str, split: str):
    """Args:

    name: TFDS's, e.g. "librispeech" or "fleurs/de_de:1.0.0", or the folder of a prepared version.
    split: TFDS's, slices too, e.g. "train[:90%]".
    """
    self.name = name
    self.split = split

  def __reduce__(self):
    # Another process knows neither SeqIO's data folder nor builders that a module has defined.
    return TfdsTable, (str(self._builder.data_dir), self.split)

  def __len__(self) -> int:
    try:
      return self._builder.info.splits[self.split].num_examples
    except (KeyError, ValueError) as error:
      splits = sorted(self._builder.info.splits)
      raise UserError(f"tfds:{self.name} has no split {self.split!r}; it has {splits}") from error

  def records(self, rows: Sequence[int]) -> Iterator[Record]:
    if not rows:
      return
    start, wanted = rows[0], set(rows)
    dataset: Any = self._builder.as_dataset(
      split=self._slice(start, rows[-1] + 1),  # pyright: ignore[reportCallIssue]
      shuffle_files=False,
      # One file after the other: the row numbers are those of the stored order.
      read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    reader, row = dataset.as_numpy_iterator(), start
    while True:
      name, key = f"tfds:{self.name}/{self.split}:{row}", f"{self.split}:{row}"
      try:
        fields = next(reader)
      except StopIteration:
        return
      except tf.errors.OpError as error:
        reason = (
          f"cannot be read from here on ({(error.message or type(error).__name__).splitlines()[0]})"
        )
        lost = sum(other >= row for other in rows)
        yield Record(name=name, key=key, problem=reason, lost=lost)
        return
      if row in wanted:
        yield Record(name=name, key=key, fields=self._readable(fields))
      row += 1

  def keys(self) -> Iterator[str]:
    return (f"{self.split}:{row}" for row in range(len(self)))

  def describe(self) -> dict[str, Any]:
    return {"kind": "tfds", "name": self._builder.info.full_name, "split": self.split}

  @functools.cached_property
  def _builder(self) -> tfds.core.DatasetBuilder:
    if Path(self.name).is_dir():
      return tfds.builder_from_directory(self.name)
    try:
      # SeqIO holds the folder of --tfds_data_dir; its own loader takes no name without a version.
      folder = seqio.LazyTfdsLoader(f"{self.name}:").data_dir
      builder = tfds.builder(self.name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
      raise UserError(
        f"tfds:{self.name}: TFDS knows no such data set; check its name, or import its builder's "
        "module where the task is registered"
      ) from error
    except (AssertionError, ValueError) as error:  # a version that it has not
      raise UserError(f"tfds:{self.name}: {str(error).splitlines()[0]}") from error
    if not builder.info.splits:
      raise UserError(
        f"tfds:{self.name} is not prepared in {builder.data_dir}; run tfds build {self.name}, or "
        "name the folder by --tfds_data_dir"
      )
    return builder

  def _slice(self, start: int, stop: int) -> tfds.core.ReadInstruction:
    """Rows start…stop-1 of the split, which may be a slice itself."""
    base = tfds.core.ReadInstruction.from_spec(self.split)
    parts = base.to_absolute(self._builder.info.splits)
    if len(parts) > 1:
      raise UserError(
        f"tfds:{self.name}: {self.split!r} is several splits; register them one by one"
      )
    first = parts[0].from_ or 0
    return tfds.core.ReadInstruction(
      parts[0].splitname, from_=first + start, to=first + stop, unit="abs"
    )

  def _readable(self, fields: dict[str, Any]) -> dict[str, Any]:
    found = dict(fields)
    features: Any = self._builder.info.features
    for name, feature in features.items():
      if isinstance(feature, tfds.features.ClassLabel):
        found[name] = feature.int2str(int(fields[name]))
      elif isinstance(feature, tfds.features.Audio) and feature.sample_rate:
        found.setdefault("sample_rate", feature.sample_rate)
    return found
