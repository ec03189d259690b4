"""Fills SeqIO's offline cache without Beam: many processes, resumable, every shard hashed.

`<cache_dir>/<task>/` gets what `seqio_cache_tasks` writes: `info.<split>.json`,
`stats.<split>.json`, `<split>.tfrecord-00000-of-000NN` and, last, an empty `COMPLETED`; so
`use_cached=True` reads it through SeqIO unchanged. Besides, `manifest.json` records the source's
fingerprint, each shard's SHA-256, and how many candidates of each split were dropped by rule or could
not be used; `bad_examples.jsonl` names the latter.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import seqio
import tensorflow as tf

from slm_jax.cache import default_cache_dir
from slm_jax.data.example_source import (
  BAD_EXAMPLES,
  Example,
  ExampleSource,
  Problem,
  check_problems,
  problem_lines,
)
from slm_jax.errors import UserError

MANIFEST = "manifest.json"
# Folder with one note for each finished shard, so that an interrupted or damaged cache is
# completed.
SHARD_NOTES = "shards"
SECONDS_BETWEEN_LINES = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardNote:
  """What is known of a finished shard; `stats` are sums and maxima over its examples."""

  file: str
  examples: int
  sha256: str
  features: dict[str, dict]
  stats: dict[str, int]
  dropped: dict[str, int]
  problems: list[Problem]


@dataclasses.dataclass(frozen=True)
class _Job:
  """One shard of one split."""

  folder: Path
  split: str
  shard: int
  count: int

  @property
  def path(self) -> Path:
    return self.folder / f"{self.split}.tfrecord-{self.shard:05d}-of-{self.count:05d}"

  @property
  def note_path(self) -> Path:
    return self.folder / SHARD_NOTES / f"{self.path.name}.json"


def cache_task(
  name: str, cache_dir: str | Path | None = None, *, num_processes: int = 1, quiet: bool = False
) -> Path:
  """Writes the offline cache of the registered task `name` and returns its folder.

  A complete cache of the same source is left as it is; one of a source that has changed since is
  made again. An interrupted call is continued: finished shards are kept. Two calls at once wait for
  each other.

  Args:
    name: of a task with a `seqio.CacheDatasetPlaceholder`.
    cache_dir: parent folder, default `default_cache_dir()`; added to SeqIO's cache directories.
    num_processes: workers for an `ExampleSource` cached as it is; other sources are read in this
      process.
    quiet: prints nothing.

  Raises:
    ValueError: the task has no `CacheDatasetPlaceholder`.
    UserError: the source cannot make its examples.
  """
  task = seqio.TaskRegistry.get(name)
  if not task.supports_caching:
    raise ValueError(f"task {name!r} has no seqio.CacheDatasetPlaceholder")
  parent = Path(cache_dir) if cache_dir else default_cache_dir()
  seqio.add_global_cache_dirs([str(parent)])
  folder = parent / seqio.utils.get_task_dir_from_name(name)
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"cache folder {folder.parent}: {error.strerror}; set $SLM_JAX_CACHE_DIR"
    ) from error
  say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
  with _locked(folder.parent / f".{folder.name}.lock"):
    fingerprint = _fingerprint(task)
    made_from = _recorded_fingerprint(folder)
    if made_from not in (None, fingerprint):
      say(
        f"{name}: the cache in {folder} was made from another version of its data; making it again"
      )
      shutil.rmtree(folder)
    if (folder / "COMPLETED").exists() and _whole(folder):
      return folder
    folder.mkdir(exist_ok=True)
    for leftover in (folder / "COMPLETED", *folder.glob(".*")):
      leftover.unlink(missing_ok=True)
    _write_json(folder / MANIFEST, {"task": name, "fingerprint": fingerprint})
    splits = _make_shards(task, folder, num_processes, say)
    for split, notes in splits.items():
      _write_split(task, split, folder, notes)
    shards = {
      note.file: {"sha256": note.sha256, "bytes": (folder / note.file).stat().st_size}
      for notes in splits.values()
      for note in notes
    }
    dropped = {split: dict(_total(n.dropped for n in notes)) for split, notes in splits.items()}
    bad = {split: [p for note in notes for p in note.problems] for split, notes in splits.items()}
    (folder / BAD_EXAMPLES).write_text("".join(problem_lines(*item) for item in bad.items()))
    _write_json(
      folder / MANIFEST,
      {
        "task": name,
        "fingerprint": fingerprint,
        "dropped": dropped,
        "problems": {split: sum(p.count for p in found) for split, found in bad.items()},
        "shards": shards,
      },
    )
    (folder / "COMPLETED").touch()
  return folder


def left_out(folder: Path) -> Counter[str]:
  """Reason → candidates that a cache made by `cache_task` lacks for it, over all splits; "bad" are those
  named in `BAD_EXAMPLES`. Empty for a cache made otherwise."""
  manifest = folder / MANIFEST
  if not manifest.exists():
    return Counter()
  content = json.loads(manifest.read_text())
  counts = _total(content.get("dropped", {}).values())
  counts["bad"] = sum(content.get("problems", {}).values())
  return +counts


def _write_split(task: seqio.Task, split: str, folder: Path, notes: list[ShardNote]) -> None:
  """Writes what SeqIO reads before the shards themselves."""
  examples = sum(note.examples for note in notes)
  if not examples:
    dropped = dict(_total(note.dropped for note in notes))
    raise UserError(f"task {task.name}, split {split}: no example is left (dropped: {dropped})")
  stats = _total(note.stats for note in notes)
  for name in [name for name in stats if "_max_" in name]:
    stats[name] = max(note.stats.get(name, 0) for note in notes)
  features = next(note.features for note in notes if note.features)
  _write_json(folder / f"stats.{split}.json", {"examples": examples, **stats})
  _write_json(
    folder / f"info.{split}.json",
    {"num_shards": len(notes), "features": features, "seqio_version": seqio.__version__},
  )


def _make_shards(
  task: seqio.Task, folder: Path, num_processes: int, say: Callable[[str], None]
) -> dict[str, list[ShardNote]]:
  """Writes the shards that are not there yet; returns the notes of all, in order, by split."""
  jobs = [
    _Job(folder, split, shard, len(shards))
    for split in task.splits
    for shards in [task.source.list_shards(split)]
    for shard in range(len(shards))
  ]
  # A shard with problems is made again: whoever comes back may have mended its files.
  notes = {job: note for job in jobs if (note := _finished(job)) and not note.problems}
  todo = [job for job in jobs if job not in notes]
  started = said = time.monotonic()
  made = 0
  for number, (job, note) in enumerate(_run(task, todo, num_processes), start=1):
    notes[job] = note
    for problem in note.problems:
      say(f"{task.name}: skipped {problem}")
    _check_problems(task, notes, folder)
    made += note.examples
    now = time.monotonic()
    if now - said < SECONDS_BETWEEN_LINES and number < len(todo):
      continue
    said, seconds = now, now - started
    left = int(seconds / number * (len(todo) - number))
    dropped = _total(n.dropped for n in notes.values()).total()
    say(
      f"{task.name}: shard {len(notes)}/{len(jobs)}, {made / seconds:.0f} examples/s, "
      f"{dropped} dropped, ETA {left // 60}:{left % 60:02d}"
    )
  return {split: [notes[job] for job in jobs if job.split == split] for split in task.splits}


def _check_problems(task: seqio.Task, notes: Mapping[_Job, ShardNote], folder: Path) -> None:
  """Writes down the problems so far; raises UserError when they are more than the source allows."""
  problems = [problem for note in notes.values() for problem in note.problems]
  if not problems:
    return
  lines = (problem_lines(job.split, note.problems) for job, note in notes.items())
  (folder / BAD_EXAMPLES).write_text("".join(lines))
  total = sum(task.source.num_input_examples(split) or 0 for split in task.splits)
  share = task.source.max_problem_share if isinstance(task.source, ExampleSource) else 0.0
  try:
    check_problems(problems, total, share, f"task {task.name}")
  except UserError as error:
    raise UserError(f"{error}; all are named in {folder / BAD_EXAMPLES}") from error


def _run(
  task: seqio.Task, jobs: list[_Job], num_processes: int
) -> Iterator[tuple[_Job, ShardNote]]:
  """Does the jobs, yielding each as it is done."""
  source = task.source
  # SeqIO's own sources hold functions that do not pickle, and TensorFlow already reads them in many
  # threads.
  if not (
    isinstance(source, ExampleSource)
    and isinstance(task.preprocessors[0], seqio.CacheDatasetPlaceholder)
  ):
    for job in jobs:
      info = seqio.ShardInfo(index=job.shard, num_shards=job.count) if job.count > 1 else None
      dataset = source.get_dataset(split=job.split, shuffle=False, shard_info=info)
      dataset = task.preprocess_precache(dataset, seed=job.shard)
      yield job, _write_shard(dataset.as_numpy_iterator(), {}, [], job)
    return
  workers = min(num_processes, len(jobs))
  # Two shards are made sooner than processes are started, and a mixture may have many small tasks.
  if workers <= 1 or len(jobs) <= 2:
    for job in jobs:
      yield job, _write_source_shard(source, job)
    return
  # Spawned: TensorFlow does not survive a fork.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=_end_with_parent
  ) as pool:
    futures = {pool.submit(_write_source_shard, source, job): job for job in jobs}
    try:
      for future in concurrent.futures.as_completed(futures):
        yield futures[future], future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _end_with_parent() -> None:
  """Ends this worker when its parent is gone, however that ended; it would wait for work for ever."""
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _write_source_shard(source: ExampleSource, job: _Job) -> ShardNote:
  source.dropped.clear()
  source.problems.clear()
  examples = source.make_examples(job.split, *source.shard_range(job.split, job.shard))
  return _write_shard(examples, source.dropped, source.problems, job)


def _write_shard(
  examples: Iterable[Example], dropped: dict[str, int], problems: list[Problem], job: _Job
) -> ShardNote:
  """Writes one file by way of a temporary name; reads `dropped` and `problems` at the end."""
  temporary = job.folder / f".{job.path.name}.{os.getpid()}"
  features: dict[str, dict] = {}
  stats: Counter[str] = Counter()
  number = 0
  with tf.io.TFRecordWriter(str(temporary)) as writer:
    for example in examples:
      writer.write(_serialise(example))
      if not features:
        features = {name: _feature_info(value) for name, value in example.items()}
      _count(stats, example)
      number += 1
  note = ShardNote(
    file=job.path.name,
    examples=number,
    sha256=_sha256(temporary),
    features=features,
    stats=dict(stats),
    dropped=dict(dropped),
    problems=list(problems),
  )
  job.note_path.parent.mkdir(exist_ok=True)
  _write_json(job.note_path, dataclasses.asdict(note))
  # Last, so that a shard under its final name always has its note.
  os.replace(temporary, job.path)
  return note


def _finished(job: _Job) -> ShardNote | None:
  if not (job.path.exists() and job.note_path.exists()):
    return None
  try:
    content = json.loads(job.note_path.read_text())
    note = ShardNote(**{**content, "problems": [Problem(**p) for p in content["problems"]]})
  except (KeyError, TypeError, ValueError):  # written by another version
    return None
  return note if _sha256(job.path) == note.sha256 else None


def _serialise(example: Example) -> bytes:
  # Map fields of a proto have no order of their own: equal examples must be equal bytes.
  proto = tf.train.Example()
  for name in sorted(example):
    feature, value = proto.features.feature[name], example[name]
    if isinstance(value, (bytes, str)):
      feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    elif _dtype(value) == "float32":
      feature.float_list.value.extend(value.ravel())
    elif _dtype(value) == "string":
      feature.bytes_list.value.extend(value.ravel())
    else:
      feature.int64_list.value.extend(value.ravel())
  return proto.SerializeToString(deterministic=True)


def _feature_info(value) -> dict:
  shape = [] if isinstance(value, (bytes, str)) else [None, *value.shape[1:]] if value.shape else []
  return {"shape": shape, "dtype": _dtype(value)}


def _dtype(value) -> str:
  if isinstance(value, (bytes, str)) or value.dtype == object:
    return "string"
  return value.dtype.name


def _count(stats: Counter[str], example: Example) -> None:
  for name, value in example.items():
    size = len(value) if isinstance(value, (bytes, str)) else value.size
    unit = "bytes" if _dtype(value) == "string" else "tokens"
    stats[f"{name}_{unit}"] += size
    stats[f"{name}_max_{unit}"] = max(stats[f"{name}_max_{unit}"], size)


def _fingerprint(task: seqio.Task) -> str:
  source = task.source
  return source.fingerprint() if isinstance(source, ExampleSource) else repr(source)


def _recorded_fingerprint(folder: Path) -> str | None:
  manifest = folder / MANIFEST
  # A cache written by `seqio_cache_tasks` has no manifest: it is the user's own and stays.
  return json.loads(manifest.read_text())["fingerprint"] if manifest.exists() else None


def _whole(folder: Path) -> bool:
  """Whether a complete cache still has every shard at its size."""
  if not (folder / MANIFEST).exists():
    return True  # written by `seqio_cache_tasks`
  shards = json.loads((folder / MANIFEST).read_text()).get("shards", {})
  paths = [(folder / name, shard["bytes"]) for name, shard in shards.items()]
  return all(path.exists() and path.stat().st_size == size for path, size in paths)


def _total(counts: Iterable[dict[str, int]]) -> Counter[str]:
  total: Counter[str] = Counter()
  for count in counts:
    total.update(count)
  return total


def _sha256(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict) -> None:
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
  os.replace(temporary, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
