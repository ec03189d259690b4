"""Recorded speech of any table as a SeqIO source that survives bad records."""

import dataclasses
import hashlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.data.example_source import Example, ExampleSource, Problem, check_problems
from slm_jax.data.hints import Hints
from slm_jax.data.record_audio import audio_of
from slm_jax.data.record_columns import BadRecord, Columns, text_of
from slm_jax.data.record_tables import Record, RecordTable
from slm_jax.data.speech_corpus import Utterance
from slm_jax.errors import UserError

ANY = "*"
HINTS = "hints"
_COLUMN_NAMES = tuple(field.name for field in dataclasses.fields(Columns))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """Which rows of a table a split has: those that fulfil `where` and whose hash lies in `share`.

  Attributes:
    table: the rows.
    where: column → the values allowed, or ("*",) for any but none. Columns of `Columns` go by their
      name there.
    share: (from, to) of 0…1, where the hashes of `split_by` are spread evenly.
    split_by: column whose equal values stay together, e.g. "speaker"; "" is `id`, or the row's
      place in its data set where there is none.
  """

  table: RecordTable
  where: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  share: tuple[float, float] = (0.0, 1.0)
  split_by: str = ""

  def __post_init__(self):
    low, high = self.share
    if not 0 <= low < high <= 1:
      raise ValueError(f"share={self.share} is not a range within 0…1")
    if self.split_by and not self.table.cheap_texts:
      raise ValueError(
        f"split_by={self.split_by!r}: {type(self.table).__name__} would be read as a whole for it; "
        "name the files of each split"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
  """How records become examples.

  Attributes:
    columns: what the columns are called.
    target: the column that is the answer, a name of `Columns` or of the data.
    instructions: wordings; each record gets one, by its id, for good. `{name}` is replaced by the
      record's text of that column; a wording whose text a record lacks is not used for it. A
      record's own instruction comes first. Empty: the task has none.
    task: name kept with each example.
    language: of records that name none.
    target_language: of the answer where it is not the spoken one and records name none.
    sample_rate: of samples whose record states none, in Hz.
    hints: what {hints} stands for in the wordings, made from the record's `text`.
    max_seconds: longer recordings are left out and counted.
  """

  columns: Columns = Columns()
  target: str = "text"
  instructions: tuple[str, ...] = ()
  task: str = "asr"
  language: str = ""
  target_language: str = ""
  sample_rate: int | None = None
  hints: Hints | None = None
  max_seconds: float = 30.0

  def __post_init__(self):
    if not self.max_seconds > 0:  # NaN is not
      raise ValueError(f"{self.max_seconds=} must be positive")
    names = [_placeholders(wording) for wording in self.instructions]
    if self.hints and not any(HINTS in found for found in names):
      raise ValueError(f"hints: none of the instructions {self.instructions} has {{{HINTS}}}")

  def describe(self) -> dict[str, Any]:
    """JSON-ready facts that decide the examples."""
    facts = dataclasses.asdict(self)
    # Left out where there are none: caches made before there were any remain.
    del facts["hints"]
    return facts | ({"hints": self.hints.describe()} if self.hints else {})


class RecordSource(ExampleSource):
  """Utterances of tables of records, with the fields of `Utterance` and `audio`, PCM16 at 16 kHz.

  A record that cannot be used (a line that is not UTF-8 or not JSON, no text, a file that is
  missing, empty, damaged or mislabelled) becomes a `Problem`, up to a share of all records.
  """

  fields = dict.fromkeys(("audio", *(f.name for f in dataclasses.fields(Utterance))), tf.string)

  def __init__(
    self,
    splits: Mapping[str, Split],
    settings: RecordSettings,
    *,
    max_problem_share: float = 0.01,
    examples_per_shard: int = 250,
  ):
    """Reads nothing yet, so that a task can be registered where its data are not.

    Args:
      splits: name → its rows.
      settings: how they become examples.
      max_problem_share: of records that may be unusable.
      examples_per_shard: records in a shard.
    """
    super().__init__(splits, examples_per_shard=examples_per_shard)
    if not 0 <= max_problem_share <= 1:
      raise ValueError(f"{max_problem_share=} is not a share")
    self.parts = dict(splits)
    self.settings = settings
    self.max_problem_share = max_problem_share
    self._members: dict[str, np.ndarray] = {}

  def num_input_examples(self, split: str) -> int:
    return len(self._rows(split))

  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    part = self.parts[split]
    for record in part.table.records(self._rows(split)[start:stop].tolist()):
      problem = record.problem
      if not problem:
        try:
          if not part.table.cheap_texts and not self._selected(record, part.where):
            self.dropped["not selected"] += 1
            continue
          utterance = self._utterance(record)
          audio = audio_of(
            record.fields, self.settings.columns, part.table.folder, self.settings.sample_rate
          )
        except (BadRecord, UserError) as error:
          problem = str(error)
        else:
          if len(audio) > self.settings.max_seconds * SAMPLE_RATE:
            self.dropped[f"audio longer than {self.settings.max_seconds:g} s"] += 1
            continue
          texts = dataclasses.asdict(utterance)
          yield {
            "audio": audio.astype("<i2").tobytes(),
            **{name: text.encode() for name, text in texts.items()},
          }
          continue
      self.problems.append(Problem(name=record.name, reason=problem, count=record.lost))

  def describe(self) -> dict[str, Any]:
    return {
      "kind": "records",
      "splits": {
        name: {
          "table": part.table.describe(),
          "where": {column: list(values) for column, values in part.where.items()},
          "share": part.share,
          "split_by": part.split_by,
        }
        for name, part in self.parts.items()
      },
      "settings": self.settings.describe(),
    }

  def _utterance(self, record: Record) -> Utterance:
    settings = self.settings
    fields = {name: self._text(record, name) for name in ("language", "target_language", "speaker")}
    language = fields["language"] or settings.language
    if settings.target == "text":
      target_language = language
    else:
      target_language = fields["target_language"] or settings.target_language or language
    identity = self._text(record, "id") or record.key
    target = self._text(record, settings.target)
    if not target:
      column = getattr(settings.columns, settings.target, settings.target)
      raise BadRecord(
        f"field {column!r} is missing or empty, the answer; there are {sorted(record.fields)}"
      )
    rare = self._text(record, "biasing_words")
    return Utterance(
      id=identity,
      task=settings.task,
      language=language,
      target_language=target_language,
      transcript=self._text(record, "text"),
      instruction=self._instruction(record, identity) if settings.instructions else "",
      target=target,
      voice=fields["speaker"],
      names="|".join(filter(None, map(str.strip, re.split("[|,]", rare)))),
    )

  def _instruction(self, record: Record, identity: str) -> str:
    own = self._text(record, "instruction")
    if own:
      return own
    wordings, missing = [], set()
    for wording in self.settings.instructions:
      values = {name: self._value(record, name, identity) for name in _placeholders(wording)}
      empty = {name for name, value in values.items() if not value}
      missing |= empty
      if not empty and wording:
        wordings.append(_fill(wording, values))
    if not wordings:
      raise BadRecord(f"no instruction fits: {sorted(missing) or 'its own'} is missing or empty")
    # Not the hash that splits are made by, which is alike within a small split.
    return wordings[int(_hash(f"wording {identity}") * len(wordings))]

  def _value(self, record: Record, name: str, identity: str) -> str:
    """What {name} stands for in an instruction."""
    if name != HINTS or self.settings.hints is None:
      return self._text(record, name)
    digest = hashlib.sha256(f"hints {identity}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return ", ".join(self.settings.hints.words(self._text(record, "text"), rng))

  def _text(self, record: Record, name: str) -> str:
    """Text of a column, by its name in `Columns` or in the data; "" if there is none."""
    column = getattr(self.settings.columns, name) if name in _COLUMN_NAMES else name
    return text_of(record.fields, column)

  def _rows(self, split: str) -> np.ndarray:
    """Numbers of the split's rows; those with a problem go by the place where they stand."""
    if split not in self._members:
      part = self.parts[split]
      if not part.table.cheap_texts:
        self._members[split] = _rows_by_key(part)
      elif part.where or part.share != (0.0, 1.0):
        self._members[split] = self._select(part, first=split == self.splits[0])
      else:
        self._members[split] = np.arange(len(part.table))
      if not len(self._members[split]):
        raise UserError(
          f"split {split!r} has none of the {len(part.table)} records of {self.settings.task} "
          f"(share {part.share[0]:g} to {part.share[1]:g}, where={dict(part.where)}); change splits "
          "or where"
        )
    return self._members[split]

  def _select(self, part: Split, *, first: bool) -> np.ndarray:
    """Rows that belong to the split. Those that cannot tell, the first split answers for."""
    chosen, problems, total = [], [], 0
    for row, record in enumerate(part.table.texts()):
      total += 1
      try:
        if record.problem:
          raise BadRecord(record.problem)
        if self._selected(record, part.where) and self._in_share(record, part):
          chosen.append(row)
      except BadRecord as error:
        problems.append(Problem(name=record.name, reason=str(error), count=record.lost))
        if first:
          chosen.append(row)
    check_problems(problems, total, self.max_problem_share, type(part.table).__name__)
    return np.asarray(chosen, np.int64)

  def _selected(self, record: Record, where: Mapping[str, Sequence[str]]) -> bool:
    for name, values in where.items():
      text = self._text(record, name)
      if not text or (ANY not in values and text not in values):
        return False
    return True

  def _in_share(self, record: Record, part: Split) -> bool:
    low, high = part.share
    key = self._text(record, part.split_by or "id")
    if not key and part.split_by:
      raise BadRecord(f"field {part.split_by!r} is missing or empty, by which splits are made")
    return low <= _hash(key or record.key) < high


def _rows_by_key(part: Split) -> np.ndarray:
  low, high = part.share
  if (low, high) == (0.0, 1.0):
    return np.arange(len(part.table))
  keys = enumerate(part.table.keys())
  return np.asarray([row for row, key in keys if low <= _hash(key) < high], np.int64)


def _hash(text: str) -> float:
  """A number in [0, 1) that depends on the text alone."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _placeholders(wording: str) -> list[str]:
  """Names in braces; raises ValueError for anything but plain names there."""
  try:
    parsed = [(name, spec, conversion) for _, name, spec, conversion in _parsed(wording)]
  except ValueError as error:
    raise ValueError(f"instruction {wording!r}: {error}; write {{{{ for a brace") from error
  names = []
  for name, spec, conversion in parsed:
    if name is None:
      continue
    if not name or name.isdigit() or spec or conversion or "[" in name:
      raise ValueError(f"instruction {wording!r}: {{{name}}} is no plain name of a column")
    names.append(name)
  return names


def _fill(wording: str, values: Mapping[str, str]) -> str:
  return "".join(text + (values[name] if name else "") for text, name, _, _ in _parsed(wording))


def _parsed(wording: str):
  return string.Formatter().parse(wording)
