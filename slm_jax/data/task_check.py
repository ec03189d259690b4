"""Reads examples of a task and tells what would hurt training."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from slm_jax.audio.files import FULL_SCALE, SAMPLE_RATE
from slm_jax.data.example_source import ExampleSource, Problem
from slm_jax.data.task_examples import SampledSplit, TaskExample
from slm_jax.errors import UserError

# Shares of the examples read; beyond them a finding is an error, below it is a warning.
LIMITS = {
  "silent": 0.01,
  "clipped": 0.10,
  "over-long": 0.05,
  "characters out of vocabulary": 0.01,
  "text and audio do not fit": 0.01,
  "duplicates between splits": 0.0,
  "empty target": 0.0,
}
# Of the loudest tenth of a second: whole recordings of speech come as quiet as -60 dBFS.
_SILENT_DBFS = -65.0
_SILENCE_SAMPLES = SAMPLE_RATE // 10
_CLIPPED_SHARE = 1e-3  # of samples at full scale
# Letters of the transcript a second: people say 10 to 20, in Chinese or Japanese 3 to 8.
_SLOWEST, _FASTEST = 0.3, 35.0
_NAMES_LISTED = 5

FEATURES = ("audio", "inputs", "targets")
Lengths = Sequence[Mapping[str, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """Something wrong with a split.

  Attributes:
    level: "error" if it would hurt training, else "warning".
    what: a key of `LIMITS`, or a sentence.
    count: examples concerned, of `of` read.
    names: the first few of them.
  """

  level: str
  split: str
  what: str
  count: int
  of: int
  names: list[str]


@dataclasses.dataclass
class _Seen:
  """What is gathered from a split's examples."""

  seconds: list[float] = dataclasses.field(default_factory=list)
  lengths: list[list[int]] = dataclasses.field(default_factory=list)
  hours: dict[str, float] = dataclasses.field(default_factory=dict)
  speakers: set[str] = dataclasses.field(default_factory=set)
  unknown: Counter[str] = dataclasses.field(default_factory=Counter)
  names: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  audio: dict[bytes, str] = dataclasses.field(default_factory=dict)
  repeated: int = 0

  def note(self, what: str, name: str) -> None:
    self.names.setdefault(what, []).append(name)


def check_task(
  task: seqio.Task,
  num_examples: int,
  lengths: Lengths = (),
  see_sizes: Callable[[np.ndarray], None] = lambda _: None,
) -> dict[str, Any]:
  """A JSON-ready report on up to `num_examples` of each split, spread over it.

  Args:
    task: registered.
    num_examples: of each split.
    lengths: declared task feature lengths, the longest last; an example takes the first it fits into.
    see_sizes: is given each split's lengths, int [N, 3] of the features in `FEATURES`.

  Returns:
    task, splits (name → candidates, read, examples, seconds, hours by language, lengths, dropped, bad,
    padding, …), findings, `ok`: no finding is an error.
  """
  findings: list[Finding] = []
  splits: dict[str, Any] = {}
  before: dict[str, _Seen] = {}
  for split in task.splits:
    source = task.source if isinstance(task.source, ExampleSource) else None
    if source:
      source.dropped.clear()
      source.problems.clear()
    try:
      sample = SampledSplit(task, split, num_examples)
      seen = _gather(task, sample, lengths)
    except UserError as error:
      findings.append(_finding("error", split, str(error)))
      continue
    see_sizes(np.asarray(seen.lengths, int).reshape(-1, len(FEATURES)))
    problems = list(source.problems) if source else []
    dropped = dict(source.dropped) if source else {}
    splits[split] = _summary(sample, seen, problems, dropped, lengths)
    share = source.max_problem_share if source else 0.0
    findings += _findings(split, sample, seen, problems, dropped, share)
    for other, theirs in before.items():
      both = [name for audio, name in seen.audio.items() if audio in theirs.audio]
      if both:
        what = "duplicates between splits"
        findings.append(_judged(split, what, both, len(seen.seconds), note=f" (also in {other})"))
    before[split] = seen
  return {
    "task": task.name,
    "splits": splits,
    "findings": [dataclasses.asdict(finding) for finding in findings],
    "ok": all(finding.level != "error" for finding in findings),
  }


def _gather(task: seqio.Task, sample: SampledSplit, lengths: Lengths) -> _Seen:
  seen = _Seen()
  vocabulary = task.output_features["targets"].vocabulary
  known: dict[str, bool] = {}
  for example in sample:
    name = example.id or f"example {len(seen.seconds)}"
    seconds = len(example.audio) / SAMPLE_RATE
    seen.seconds.append(seconds)
    seen.lengths.append(list(example.lengths().values()))
    languages = dict.fromkeys(filter(None, (example.language, example.target_language)))
    direction = "-".join(languages)
    seen.hours[direction] = seen.hours.get(direction, 0.0) + seconds / 3600
    seen.speakers.add(example.speaker)
    unknown = _unknown(example.target + example.instruction, vocabulary, known)
    seen.unknown.update(unknown)
    if unknown:
      seen.note("characters out of vocabulary", name)
    if not example.target.strip():
      seen.note("empty target", name)
    if lengths and any(size > lengths[-1].get(f, size) for f, size in example.lengths().items()):
      seen.note("over-long", name)
    if "audio" in task.output_features:
      _gather_audio(example, name, seen)
  return seen


def _gather_audio(example: TaskExample, name: str, seen: _Seen) -> None:
  audio = example.audio.astype(np.float64) / FULL_SCALE
  pieces = np.array_split(audio, max(1, len(audio) // _SILENCE_SAMPLES))
  power = max(float(np.mean(piece**2)) if len(piece) else 0.0 for piece in pieces)
  if 10 * np.log10(max(power, 1e-12)) < _SILENT_DBFS:
    seen.note("silent", name)
  if len(audio) and np.mean(np.abs(audio) >= 1 - 1.5 / FULL_SCALE) > _CLIPPED_SHARE:
    seen.note("clipped", name)
  letters = sum(character.isalnum() for character in example.transcript)
  if letters and not _SLOWEST <= letters / max(len(audio) / SAMPLE_RATE, 1e-3) <= _FASTEST:
    seen.note("text and audio do not fit", name)
  digest = hashlib.sha256(example.audio.tobytes()).digest()
  seen.repeated += digest in seen.audio
  seen.audio.setdefault(digest, name)


def _unknown(text: str, vocabulary, known: dict[str, bool]) -> set[str]:
  """Characters that the vocabulary writes as its unknown token."""
  for character in set(text) - set(known):
    known[character] = character.isspace() or vocabulary.unk_id not in vocabulary.encode(character)
  return {character for character in set(text) if not known[character]}


def _findings(
  split: str,
  sample: SampledSplit,
  seen: _Seen,
  problems: Sequence[Problem],
  dropped: Mapping[str, int],
  problem_share: float,
) -> list[Finding]:
  found = [_judged(split, what, names, len(seen.seconds)) for what, names in seen.names.items()]
  bad = sum(problem.count for problem in problems)
  if bad:
    level = "error" if bad > problem_share * sample.read else "warning"
    names = [str(problem) for problem in problems[:_NAMES_LISTED]]
    found.append(
      Finding(level=level, split=split, what="bad records", count=bad, of=sample.read, names=names)
    )
  for rule, count in dropped.items():
    level = "error" if count > LIMITS["over-long"] * sample.read and "long" in rule else "warning"
    found.append(
      Finding(
        level=level, split=split, what=f"left out: {rule}", count=count, of=sample.read, names=[]
      )
    )
  if not seen.seconds:
    found.append(_finding("error", split, "no example is left"))
  if seen.repeated:
    found.append(
      dataclasses.replace(
        _finding("warning", split, "the same audio twice"),
        count=seen.repeated,
        of=len(seen.seconds),
      )
    )
  return found


def _judged(split: str, what: str, names: list[str], read: int, note: str = "") -> Finding:
  level = "error" if len(names) > LIMITS[what] * read else "warning"
  return Finding(
    level=level,
    split=split,
    what=what + note,
    count=len(names),
    of=read,
    names=names[:_NAMES_LISTED],
  )


def _finding(level: str, split: str, what: str) -> Finding:
  return Finding(level=level, split=split, what=what, count=0, of=0, names=[])


def _summary(
  sample: SampledSplit,
  seen: _Seen,
  problems: Iterable[Problem],
  dropped: Mapping[str, int],
  lengths: Lengths,
) -> dict[str, Any]:
  sizes = np.asarray(seen.lengths, int).reshape(-1, len(FEATURES))
  summary: dict[str, Any] = {
    "candidates": sample.candidates,
    "read": sample.read,
    "examples": len(seen.seconds),
    "dropped": dict(dropped),
    "bad": [dataclasses.asdict(problem) for problem in problems],
    "seconds": _spread(np.asarray(seen.seconds)),
    "hours": {language: round(hours, 4) for language, hours in sorted(seen.hours.items())},
    "speakers": len(seen.speakers - {""}),
    "lengths": {name: _spread(sizes[:, i]) for i, name in enumerate(FEATURES)},
    "unknown_characters": dict(seen.unknown.most_common(50)),
  }
  if lengths:
    summary["padding"] = padding_shares(sizes, lengths)
  return summary


def padding_shares(sizes: np.ndarray, lengths: Lengths) -> dict[str, float | None]:
  """Feature → the share of declared positions that no example fills; None if none is declared.

  Args:
    sizes: int [N, 3] of the features in `FEATURES`.
    lengths: declared lengths, the longest last; an example takes the first whose every length is
      enough, and is left out if there is none.
  """
  declared = [name for name in FEATURES if name in lengths[-1]]
  columns = [FEATURES.index(name) for name in declared]
  limits = np.asarray([[bucket[name] for name in declared] for bucket in lengths])
  fits = np.all(sizes[:, None, columns] <= limits, axis=2)  # [N, number of lengths]
  kept = fits[:, -1]
  places = limits[np.argmax(fits[kept], axis=1)].sum(axis=0)
  real = sizes[kept][:, columns].sum(axis=0)
  return {
    name: round(float(1 - real[i] / places[i]), 4) if places[i] else None
    for i, name in enumerate(declared)
  }


def _spread(values: np.ndarray) -> dict[str, float]:
  if not len(values):
    return {}
  quantiles = np.quantile(values, [0, 0.5, 0.95, 1])
  names = ("min", "median", "p95", "max")
  spread = {name: round(float(value), 3) for name, value in zip(names, quantiles, strict=True)}
  return {**spread, "total": round(float(values.sum()), 3)}
