"""Makes a speech task whose targets a language model wrote from the transcripts.

The output folder, in the layout that `register_speech_task` reads:

    <split>.jsonl        a line for each example: `audio` (relative), `id`, `text`, `instruction`,
                         `target` (the answer), `reference` (the task's own target), languages, `speaker`
    audio/<split>/…      FLAC, 16 kHz mono: the samples as the task's training hears them, bit for bit
    skipped.jsonl        every record without an answer to train on, with the reason
    card.json            how it was made, and the counts; written last
    shards/              what is done so far, until all is

A shard is a function of (task, split, shard, settings), so an interrupted call is continued and ends in
the same bytes. Audio is copied, since a task's recordings may lie in archives or be synthesised.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import soundfile

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.data.example_source import Example, ExampleSource, Problem, check_problems
from slm_jax.errors import UserError

CARD = "card.json"
SKIPPED = "skipped.jsonl"
_SHARDS = "shards"
_SETTINGS = "settings.json"
_SECONDS_BETWEEN_LINES = 5.0

# ((transcript, instruction) of a shard, seed) → (text, why it is not to be trained on or "") of each.
Answers = Callable[[Sequence[tuple[str, str]], int], Sequence[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class _Shard:
  """One shard of one split; its folder is there under this name once it is whole."""

  folder: Path
  split: str
  number: int
  count: int

  @property
  def name(self) -> str:
    return f"{self.split}-{self.number:05d}-of-{self.count:05d}"

  @property
  def path(self) -> Path:
    return self.folder / _SHARDS / self.name

  @property
  def audio(self) -> Path:
    """Relative to the output folder."""
    return Path("audio", self.split, f"{self.number:05d}")

  @property
  def seed(self) -> int:
    return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:3], "big")


def write_self_targets(
  task: seqio.Task,
  output: str | Path,
  answers: Answers,
  settings: Mapping[str, Any],
  *,
  splits: Sequence[str] = (),
  instruction: str = "",
  seed: int = 0,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Writes the folder and returns its card.

  Args:
    task: one whose examples come from an `ExampleSource` with transcripts.
    output: new, or of an interrupted or finished call with the same arguments.
    answers: the LM.
    settings: JSON-ready facts that decide the answers, kept in the card.
    splits: of the task; default all.
    instruction: asked about every recording instead of the task's own.
    seed: of sampled answers; each shard has its own from it.
    say: takes lines about progress.

  Raises:
    UserError: no such source or split, no instruction, `output` holds something else, another call is
      at work in it, too many unusable records, or nothing is left of a split.
  """
  source = _source(task, splits)
  chosen = list(splits) or list(task.splits)
  folder = Path(output)
  facts = {
    "task": task.name,
    "source": source.fingerprint(),
    "splits": chosen,
    "instruction": instruction,
    "seed": seed,
    **settings,
  }
  if (folder / CARD).exists():
    card = json.loads((folder / CARD).read_text())
    _check_same(folder, card["made_from"], facts)
    shutil.rmtree(folder / _SHARDS, ignore_errors=True)
    return card
  if folder.exists() and not (folder / _SHARDS / _SETTINGS).exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty and not of this command; choose another --output")
  (folder / _SHARDS).mkdir(parents=True, exist_ok=True)
  with open(folder / _SHARDS / ".lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"another process is at work in {folder}; wait for it") from error
    if (folder / _SHARDS / _SETTINGS).exists():
      _check_same(folder, json.loads((folder / _SHARDS / _SETTINGS).read_text()), facts)
    _write(folder / _SHARDS / _SETTINGS, _json(facts))
    _make_shards(task, source, chosen, folder, answers, instruction, seed, say)
    card = _join(source, chosen, folder, facts)
  shutil.rmtree(folder / _SHARDS)
  return card


def _source(task: seqio.Task, splits: Sequence[str]) -> ExampleSource:
  source = task.source
  if not (
    isinstance(source, ExampleSource)
    and isinstance(task.preprocessors[0], seqio.CacheDatasetPlaceholder)
    and {"audio", "transcript"} <= set(source.fields)
  ):
    raise UserError(
      f"task {task.name} keeps no transcripts beside its audio; give a task of register_speech_task or "
      "of a corpus"
    )
  for split in splits:
    if split not in task.splits:
      raise UserError(f"--split={split}: {task.name} has {', '.join(sorted(task.splits))}")
  return source


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  before, now = json.loads(json.dumps([before, now]))
  names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
  if names:
    changes = "; ".join(f"{name}: {before.get(name)} there, {now.get(name)} now" for name in names)
    raise UserError(f"{folder} was made from other settings ({changes}); choose another --output")


def _make_shards(
  task: seqio.Task,
  source: ExampleSource,
  splits: Sequence[str],
  folder: Path,
  answers: Answers,
  instruction: str,
  seed: int,
  say: Callable[[str], None],
) -> None:
  """Makes the shards that are not there yet."""
  shards = [
    _Shard(folder, split, number, count)
    for split in splits
    for count in [len(source.list_shards(split))]
    for number in range(count)
  ]
  # A shard with bad records is made again: whoever comes back may have mended its files.
  todo = [shard for shard in shards if not shard.path.exists() or _bad_records(shard)]
  total = sum(source.num_input_examples(split) for split in splits)
  problems: list[Problem] = []
  started = said = time.monotonic()
  records = 0
  for number, shard in enumerate(todo, start=1):
    problems += _make_shard(source, shard, answers, instruction, seed)
    check_problems(problems, total, source.max_problem_share, f"task {task.name}")
    start, stop = source.shard_range(shard.split, shard.number)
    records += stop - start
    now = time.monotonic()
    if now - said >= _SECONDS_BETWEEN_LINES or number == len(todo):
      said, seconds = now, now - started
      left = int(seconds / number * (len(todo) - number))
      say(
        f"{task.name}: shard {len(shards) - len(todo) + number}/{len(shards)}, "
        f"{records / seconds:.1f} records/s, ETA {left // 60}:{left % 60:02d}"
      )


def _make_shard(
  source: ExampleSource, shard: _Shard, answers: Answers, instruction: str, seed: int
) -> list[Problem]:
  """Writes the audio, then the shard's own files, which get their name last; returns bad records."""
  source.dropped.clear()
  source.problems.clear()
  start, stop = source.shard_range(shard.split, shard.number)
  examples = list(source.make_examples(shard.split, start, stop))
  texts = [
    {name: _text(example, name) for name in example if name != "audio"} for example in examples
  ]
  for text in texts:
    text["instruction"] = instruction or text.get("instruction", "")
    if not text["instruction"]:
      raise UserError(f"example {text['id']} has no instruction; give --instruction=…")
  asked = [i for i, text in enumerate(texts) if text["transcript"]]
  pairs = [(texts[i]["transcript"], texts[i]["instruction"]) for i in asked]
  found = dict(zip(asked, answers(pairs, seed + shard.seed) if pairs else (), strict=True))
  lines: list[dict[str, Any]] = []
  skipped: list[dict[str, Any]] = []
  folder = shard.folder / shard.audio
  # Audio of an earlier try that ended before the shard did.
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  for i, (example, text) in enumerate(zip(examples, texts, strict=True)):
    answer, reason = found.get(i, ("", "no transcript"))
    if reason:
      skipped.append({"split": shard.split, "name": text["id"], "reason": reason, "answer": answer})
      continue
    samples = np.frombuffer(example["audio"], "<i2")
    path = shard.audio / f"{i:05d}.flac"
    soundfile.write(shard.folder / path, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    lines.append(_line(path, text, answer))
  bad = [dataclasses.asdict(problem) for problem in source.problems]
  skipped += [{"split": shard.split, **problem, "bad": True} for problem in bad]
  counts = {"records": stop - start, "dropped": dict(source.dropped)}
  temporary = shard.path.with_name(f".{shard.name}")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  _write(temporary / "manifest", _json_lines(lines))
  _write(temporary / "skipped", _json_lines(skipped))
  _write(temporary / "counts", json.dumps(counts))
  shutil.rmtree(shard.path, ignore_errors=True)
  os.rename(temporary, shard.path)
  return list(source.problems)


def _text(example: Example, name: str) -> str:
  value = example[name]
  return value.decode() if isinstance(value, bytes) else str(value)


def _line(audio: Path, text: Mapping[str, str], answer: str) -> dict[str, Any]:
  """The manifest's fields; those that are empty are left out."""
  fields = {
    "audio": audio.as_posix(),
    "id": text["id"],
    "text": text["transcript"],
    "instruction": text["instruction"],
    "target": answer,
    "reference": text.get("target", ""),
    "language": text.get("language", ""),
    "target_language": text.get("target_language", ""),
    "speaker": text.get("voice", ""),
  }
  return {name: value for name, value in fields.items() if value}


def _bad_records(shard: _Shard) -> bool:
  return any(json.loads(line).get("bad") for line in _lines(shard, "skipped"))


def _lines(shard: _Shard, name: str) -> list[str]:
  return (shard.path / name).read_text("utf-8").splitlines()


def _join(
  source: ExampleSource, splits: Sequence[str], folder: Path, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Puts the shards together; the card comes last."""
  counts: dict[str, Any] = {}
  all_skipped = ""
  for split in splits:
    count = len(source.list_shards(split))
    shards = [_Shard(folder, split, number, count) for number in range(count)]
    manifest = "".join((shard.path / "manifest").read_text("utf-8") for shard in shards)
    skipped = "".join((shard.path / "skipped").read_text("utf-8") for shard in shards)
    reasons: Counter[str] = Counter()
    for line in map(json.loads, skipped.splitlines()):
      reasons["bad record" if line.get("bad") else line["reason"]] += line.get("count", 1)
    records = 0
    for content in (json.loads((shard.path / "counts").read_text()) for shard in shards):
      records += content["records"]
      reasons.update(content["dropped"])
    written = manifest.count("\n")
    if not written:
      raise UserError(f"split {split}: no answer is left of {records} records ({dict(reasons)})")
    counts[split] = {
      "records": records,
      "examples": written,
      "skipped": dict(sorted(reasons.items())),
    }
    all_skipped += skipped
    _write(folder / f"{split}.jsonl", manifest)
  _write(folder / SKIPPED, all_skipped)
  card = {"made_from": dict(facts), "splits": counts}
  _write(folder / CARD, _json(card))
  return card


def _json(content: Mapping[str, Any]) -> str:
  return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
  # Only a line feed ends a line: U+2028 and its like, which end one for str.splitlines, are escaped.
  return "".join(_escaped(json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)


def _escaped(line: str) -> str:
  return line if len(line.splitlines()) < 2 else json.dumps(json.loads(line))


def _write(path: Path, text: str) -> None:
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  temporary.write_text(text, "utf-8")
  os.replace(temporary, path)
