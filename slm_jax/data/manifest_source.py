"""Recorded speech described by a JSONL manifest, as a SeqIO source that survives bad records."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from slm_jax.audio.files import read_audio
from slm_jax.data.example_source import Example, ExampleSource
from slm_jax.data.speech_corpus import Utterance
from slm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Line:
  """One line of a manifest: a record, or the reason why it is none."""

  number: int
  record: Mapping[str, Any]
  problem: str = ""


class ManifestSource(ExampleSource):
  """Utterances of a JSONL manifest: a JSON object a line names an audio file and its text.

  A record needs `audio` (path of the file, relative to the manifest's folder), `text` and
  `language`; it may have `id`, `speaker` and `instruction`. Audio of any rate and format becomes 16
  kHz PCM16.

  A record that cannot be used (a line that is not UTF-8 or not JSON, a missing field, a file that
  is missing, empty or damaged) is named as `path:line: reason`, counted, and left out, up to a
  share of all lines.
  """

  fields = dict.fromkeys(("audio", *(f.name for f in dataclasses.fields(Utterance))), tf.string)

  def __init__(
    self,
    manifest: str | Path,
    splits: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    task: str = "transcribe",
    instruction: str = "",
    max_samples: int,
    max_problem_share: float = 0.01,
    examples_per_shard: int = 250,
  ):
    """Reads nothing yet, so that a task can be registered where its data are not.

    Args:
      manifest: path of the JSONL file.
      splits: split → field → values; a record belongs to every split whose fields all have one of
        the values.
      task: name kept with each example, which decides how answers are scored.
      instruction: of records that bring none of their own.
      max_samples: longer utterances, in samples at 16 kHz, are dropped and counted.
      max_problem_share: of lines that may be unusable.
      examples_per_shard: candidates in a shard.
    """
    super().__init__(splits, examples_per_shard=examples_per_shard)
    if not 0 <= max_problem_share <= 1:
      raise ValueError(f"{max_problem_share=} is not a share")
    self.manifest = Path(manifest)
    self.selections = {split: {k: tuple(v) for k, v in s.items()} for split, s in splits.items()}
    self.task = task
    self.instruction = instruction
    self.max_samples = max_samples
    self.max_problem_share = max_problem_share

  def num_input_examples(self, split: str) -> int:
    return len(self._lines(split))

  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    for line in self._lines(split)[start:stop]:
      problem = line.problem
      if not problem:
        try:
          audio = read_audio(self.manifest.parent / line.record["audio"])
        except UserError as error:
          problem = str(error)
      if problem:
        self.problems.append(f"{self.manifest}:{line.number}: {problem}")
      elif len(audio) > self.max_samples:
        self.dropped[f"audio longer than {self.max_samples} samples"] += 1
      else:
        texts = dataclasses.asdict(self._utterance(line))
        yield {
          "audio": audio.astype("<i2").tobytes(),
          **{name: text.encode() for name, text in texts.items()},
        }

  def describe(self) -> dict[str, Any]:
    _read(self.manifest)  # raises if it is not there
    return {
      "kind": "manifest",
      "sha256": hashlib.sha256(self.manifest.read_bytes()).hexdigest(),
      "selections": self.selections,
      "task": self.task,
      "instruction": self.instruction,
      "max_samples": self.max_samples,
    }

  def _utterance(self, line: _Line) -> Utterance:
    record = line.record
    return Utterance(
      id=record.get("id", f"{self.manifest.parent.name}-{line.number}"),
      task=self.task,
      language=record["language"],
      target_language=record["language"],
      transcript=record["text"],
      instruction=record.get("instruction", self.instruction),
      target=record["text"],
      voice=record.get("speaker", ""),
    )

  def _lines(self, split: str) -> list[_Line]:
    """The split's candidates in file order; lines without a record belong to the first split."""
    lines = _read(self.manifest)
    bad = [line for line in lines if line.problem]
    if len(bad) > self.max_problem_share * len(lines):
      first = "; ".join(f"{self.manifest}:{line.number}: {line.problem}" for line in bad[:3])
      raise UserError(
        f"{len(bad)} of {len(lines)} lines of {self.manifest} cannot be used, at most "
        f"{self.max_problem_share:.2%} may be; first: {first}; mend them or raise the share"
      )
    return [line for line in lines if self._belongs(line, split)]

  def _belongs(self, line: _Line, split: str) -> bool:
    if line.problem:
      return split == self.splits[0]
    return all(line.record.get(name) in values for name, values in self.selections[split].items())


@functools.cache
def _read(manifest: Path) -> list[_Line]:
  try:
    content = manifest.read_bytes()
  except OSError as error:
    raise UserError(
      f"manifest {manifest} cannot be read ({error.strerror}); expected a JSONL file that names "
      "audio files"
    ) from error
  lines = [
    _parse(number, line)
    for number, line in enumerate(content.split(b"\n"), start=1)
    if line.strip()
  ]
  if not lines:
    raise UserError(f"manifest {manifest} is empty; expected one JSON object a line")
  return lines


def _parse(number: int, line: bytes) -> _Line:
  try:
    record = json.loads(line.decode())
  except UnicodeDecodeError as error:
    return _Line(number, {}, f"byte {error.start} of the line is not UTF-8")
  except json.JSONDecodeError as error:
    return _Line(number, {}, f"not JSON ({error.msg} at column {error.colno})")
  if not isinstance(record, dict):
    return _Line(number, {}, f"expected a JSON object, found {type(record).__name__}")
  for name in ("audio", "text", "language"):
    if not record.get(name):
      return _Line(number, {}, f"field {name!r} is missing or empty")
  for name in ("audio", "text", "language", "id", "speaker", "instruction"):
    if not isinstance(record.get(name, ""), str):
      return _Line(
        number, {}, f"field {name!r} is {type(record[name]).__name__}, expected a string"
      )
  return _Line(number, record)
