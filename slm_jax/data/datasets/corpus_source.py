"""A prepared TFDS data set of speech and a recipe, as a SeqIO source."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from slm_jax.audio.files import SAMPLE_RATE, decode_audio
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import NotUsed, Recipe
from slm_jax.data.example_source import Example, ExampleSource, Problem
from slm_jax.data.speech_corpus import Utterance
from slm_jax.errors import UserError

MAX_SECONDS = 30.0  # as USM's supervised training


def speech_record(example: Mapping[str, Any]) -> SpeechRecord:
  """The record in an example of one of the project's own builders."""
  texts = {name: value.decode() for name, value in example.items() if name != "audio"}
  return SpeechRecord(audio=example["audio"], **texts)


class CorpusSource(ExampleSource):
  """Utterances of a prepared TFDS data set, in the order in which TFDS stores them.

  Audio is decoded and brought to 16 kHz here. Damaged audio is a problem and named; audio longer
  than `max_seconds`, and what the recipe does not use, is dropped and counted, never cut.
  """

  fields = dict.fromkeys(("audio", *(f.name for f in dataclasses.fields(Utterance))), tf.string)

  def __init__(
    self,
    name: str,
    recipe: Recipe,
    splits: Mapping[str, Sequence[str]] | None = None,
    *,
    read: Callable[[Mapping[str, Any]], SpeechRecord] = speech_record,
    max_seconds: float = MAX_SECONDS,
    max_problem_share: float = 0.01,
    examples_per_shard: int = 250,
  ):
    """Reads nothing yet, so that a task can be registered where its data are not.

    Args:
      name: TFDS's with its version, e.g. "covost2/de_en:1.0.0".
      recipe: what a record becomes.
      splits: split → TFDS's splits that it is made of; default train, validation and test.
      read: example of the data set → record.
      max_seconds: of audio.
      max_problem_share: of records that may be unusable.
      examples_per_shard: candidates in a shard.
    """
    parts = splits or {split: (split,) for split in ("train", "validation", "test")}
    super().__init__(parts, examples_per_shard=examples_per_shard)
    if not 0 <= max_problem_share <= 1:
      raise ValueError(f"{max_problem_share=} is not a share")
    if max_seconds <= 0:
      raise ValueError(f"{max_seconds=} must be positive")
    self.name = name
    self.recipe = recipe
    self.parts = {split: tuple(names) for split, names in parts.items()}
    self.read = read
    self.max_seconds = max_seconds
    self.max_problem_share = max_problem_share
    self._folder = ""

  def __getstate__(self) -> dict[str, Any]:
    # Another process knows neither SeqIO's data folder nor the builder, and needs neither.
    state = {name: value for name, value in self.__dict__.items() if name != "_builder"}
    return {**state, "_folder": str(self._builder.data_dir)}

  def num_input_examples(self, split: str) -> int:
    return sum(self._size(part) for part in self.parts[split])

  def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[SpeechRecord]:
    """Candidates start…stop-1 of a split."""
    first, last = 0, self.num_input_examples(split) if stop is None else stop
    for part in self.parts[split]:
      size = self._size(part)
      low, high = max(start - first, 0), min(last - first, size)
      first += size
      if low < high:
        yield from map(self.read, self._examples(part, low, high))

  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    for record in self._readable(split, start, stop):
      try:
        utterance = self.recipe.utterance(record)
      except NotUsed as reason:
        self.dropped[str(reason)] += 1
        continue
      place = f"{self.name}/{split}:{record.id}"
      try:
        audio = decode_audio(record.audio, f"audio of {record.id}")
      except UserError as error:
        self.problems.append(Problem(name=place, reason=str(error)))
        continue
      begin, end = self.recipe.span(record)
      audio = audio[round(begin * SAMPLE_RATE) : None if end is None else round(end * SAMPLE_RATE)]
      if len(audio) > self.max_seconds * SAMPLE_RATE:
        self.dropped[f"audio longer than {self.max_seconds:g} s"] += 1
        continue
      texts = dataclasses.asdict(utterance)
      yield {
        "audio": audio.astype("<i2").tobytes(),
        **{field: text.encode() for field, text in texts.items()},
      }

  def _readable(self, split: str, start: int, stop: int) -> Iterator[SpeechRecord]:
    """The records up to one that cannot be read, which is a problem that those behind it share."""
    reader = self.records(split, start, stop)
    for number in range(start, stop):
      try:
        record = next(reader)
      except tf.errors.OpError as error:
        reason = (
          f"cannot be read from here on ({(error.message or type(error).__name__).splitlines()[0]})"
        )
        name = f"{self.name}/{split}:{number}"
        self.problems.append(Problem(name=name, reason=reason, count=stop - number))
        return
      yield record

  def describe(self) -> dict[str, Any]:
    info = self._builder.info
    return {
      "kind": "corpus",
      "name": info.full_name,
      "parts": self.parts,
      "bytes": {part: info.splits[part].num_bytes for s in self.parts.values() for part in s},
      "recipe": self.recipe.describe(),
      "max_seconds": self.max_seconds,
    }

  @functools.cached_property
  def _builder(self) -> tfds.core.DatasetBuilder:
    if self._folder:
      return tfds.builder_from_directory(self._folder)
    try:
      builder = seqio.LazyTfdsLoader(self.name).builder
    except tfds.core.DatasetNotFoundError as error:
      raise UserError(
        f"TFDS knows no data set {self.name!r}; import the builder's module"
      ) from error
    if not builder.info.splits:
      name = self.name.partition(":")[0]
      raise UserError(
        f"data set {self.name} is not prepared in {Path(builder.data_dir).parent}; run "
        f"python -m slm_jax.data.datasets.prepare {name}, or name the folder by --tfds_data_dir"
      )
    return builder

  def _size(self, part: str) -> int:
    splits = self._builder.info.splits
    if part not in splits:
      raise UserError(f"data set {self.name} has no split {part!r}; it has {sorted(splits)}")
    return splits[part].num_examples

  def _examples(self, part: str, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
    features: Any = self._builder.info.features
    encoded = {
      name: tfds.decode.SkipDecoding()
      for name, feature in features.items()
      if isinstance(feature, tfds.features.Audio)
    }
    builder: Any = self._builder
    dataset = builder.as_dataset(
      split=tfds.core.ReadInstruction(part, from_=start, to=stop, unit="abs"),
      shuffle_files=False,
      decoders=encoded or None,
      # One file after the other: the numbers are those of the stored order.
      read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    return dataset.as_numpy_iterator()
