"""Fills SeqIO's offline cache without Beam: many processes, resumable shard by shard, every shard hashed.

`<cache_dir>/<task>/` gets what `seqio_cache_tasks` writes: `info.<split>.json`, `stats.<split>.json`,
`<split>.tfrecord-00000-of-000NN` and, last, an empty `COMPLETED`; so `use_cached=True` reads it through SeqIO unchanged.
Besides, `manifest.json` records the source's fingerprint and each shard's SHA-256.
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
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import seqio
import tensorflow as tf

from slm_jax.data.example_source import Example, ExampleSource
from slm_jax.errors import UserError

MANIFEST = "manifest.json"
# Folder with one note for each finished shard, so that an interrupted or damaged cache is completed.
SHARD_NOTES = "shards"
SECONDS_BETWEEN_LINES = 5.0


def default_cache_dir() -> Path:
  """`$SLM_JAX_CACHE_DIR`, or ~/.cache/slm_jax."""
  return Path(os.environ.get("SLM_JAX_CACHE_DIR", "~/.cache/slm_jax")).expanduser()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardNote:
  """What is known of a finished shard; `stats` are sums and maxima over its examples."""

  file: str
  examples: int
  sha256: str
  features: dict[str, dict]
  stats: dict[str, int]
  dropped: dict[str, int]


def cache_task(
  name: str, cache_dir: str | Path | None = None, *, num_processes: int = 1, quiet: bool = False
) -> Path:
  """Writes the offline cache of the registered task `name` and returns its folder.

  A complete cache of the same source is left as it is; one of a source that has changed since is made again.
  An interrupted call is continued: finished shards are kept. Two calls at once wait for each other.

  Args:
    name: of a task with a `seqio.CacheDatasetPlaceholder`.
    cache_dir: parent folder, default `default_cache_dir()`; added to SeqIO's cache directories.
    num_processes: workers for an `ExampleSource` cached as it is; other sources are read in this process.
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
  folder.parent.mkdir(parents=True, exist_ok=True)
  say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
  with _locked(folder.parent / f".{folder.name}.lock"):
    fingerprint = _fingerprint(task)
    made_from = _recorded_fingerprint(folder)
    if made_from not in (None, fingerprint):
      say(f"{name}: the cache in {folder} was made from another version of its data; making it again")
      shutil.rmtree(folder)
    if (folder / "COMPLETED").exists() and not _missing(folder):
      return folder
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".*"):
      leftover.unlink()
    _write_json(folder / MANIFEST, {"task": name, "fingerprint": fingerprint})
    splits = {split: _cache_split(task, split, folder, num_processes, say) for split in task.splits}
    shards = {n.file: n.sha256 for notes in splits.values() for n in notes}
    dropped = {split: dict(_total(n.dropped for n in notes)) for split, notes in splits.items()}
    _write_json(
      folder / MANIFEST,
      {"task": name, "fingerprint": fingerprint, "dropped": dropped, "sha256": shards},
    )
    (folder / "COMPLETED").touch()
  return folder


def verify_cache(folder: str | Path) -> list[str]:
  """Names of the shards of a complete cache that are missing or differ from their recorded SHA-256."""
  manifest = json.loads((Path(folder) / MANIFEST).read_text())
  return [
    file
    for file, digest in manifest["sha256"].items()
    if not (Path(folder) / file).exists() or _sha256(Path(folder) / file) != digest
  ]


def _cache_split(task: seqio.Task, split: str, folder: Path, num_processes: int, say) -> list[ShardNote]:
  count = len(task.source.list_shards(split))
  todo, notes = [], {}
  for shard in range(count):
    note = _finished(folder, split, shard, count)
    if note is None:
      todo.append(shard)
    else:
      notes[shard] = note
  started = said = time.monotonic()
  made = 0
  for shard, note in _make_shards(task, split, folder, count, todo, num_processes):
    notes[shard] = note
    made += note.examples
    now = time.monotonic()
    if now - said < SECONDS_BETWEEN_LINES and len(notes) < count:
      continue
    said, seconds = now, now - started
    left = seconds * (count - len(notes)) / (len(notes) - count + len(todo))
    dropped = sum(_total(n.dropped for n in notes.values()).values())
    say(
      f"{task.name} {split}: shard {len(notes)}/{count}, {made / seconds:.0f} examples/s, "
      f"{dropped} dropped, ETA {int(left // 60)}:{int(left % 60):02d}"
    )
  ordered = [notes[shard] for shard in range(count)]
  stats = _total(n.stats for n in ordered)
  for name in [name for name in stats if "_max_" in name]:
    stats[name] = max(n.stats.get(name, 0) for n in ordered)
  examples = sum(n.examples for n in ordered)
  if not examples:
    raise UserError(f"task {task.name}, split {split}: no example is left (dropped: {dict(_total(n.dropped for n in ordered))})")
  features = next(n.features for n in ordered if n.features)
  _write_json(folder / f"stats.{split}.json", {"examples": examples, **stats})
  _write_json(
    folder / f"info.{split}.json",
    {"num_shards": count, "features": features, "seqio_version": seqio.__version__},
  )
  return ordered


def _make_shards(
  task: seqio.Task, split: str, folder: Path, count: int, todo: list[int], num_processes: int
) -> Iterator[tuple[int, ShardNote]]:
  """Writes the shards `todo` and yields each as it is done."""
  source = task.source
  # SeqIO's own sources hold functions that do not pickle, and TensorFlow already reads them in many threads.
  cached_as_is = isinstance(source, ExampleSource) and isinstance(
    task.preprocessors[0], seqio.CacheDatasetPlaceholder
  )
  workers = min(num_processes, len(todo))
  if cached_as_is and workers > 1:
    # TensorFlow and espeak-ng do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
      jobs = {
        pool.submit(_write_source_shard, source, split, folder, shard, count): shard for shard in todo
      }
      try:
        for job in concurrent.futures.as_completed(jobs):
          yield jobs[job], job.result()
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    return
  for shard in todo:
    if cached_as_is:
      yield shard, _write_source_shard(source, split, folder, shard, count)
    else:
      info = seqio.ShardInfo(index=shard, num_shards=count) if count > 1 else None
      dataset = source.get_dataset(split=split, shuffle=False, shard_info=info)
      dataset = task.preprocess_precache(dataset, seed=shard)
      yield shard, _write_shard(dataset.as_numpy_iterator(), {}, folder, split, shard, count)


def _write_source_shard(
  source: ExampleSource, split: str, folder: Path, shard: int, count: int
) -> ShardNote:
  source.dropped.clear()
  examples = source.make_examples(split, *source.shard_range(split, shard))
  return _write_shard(examples, source.dropped, folder, split, shard, count)


def _write_shard(
  examples: Iterable[Example], dropped: dict[str, int], folder: Path, split: str, shard: int, count: int
) -> ShardNote:
  """Writes one file through a temporary name; `dropped` is read after the last example."""
  path = folder / _shard_file(split, shard, count)
  temporary = folder / f".{path.name}.{os.getpid()}"
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
    file=path.name,
    examples=number,
    sha256=_sha256(temporary),
    features=features,
    stats=dict(stats),
    dropped=dict(dropped),
  )
  (folder / SHARD_NOTES).mkdir(exist_ok=True)
  _write_json(folder / SHARD_NOTES / f"{path.name}.json", dataclasses.asdict(note))
  # Last, so that a shard under its final name always has its note.
  os.replace(temporary, path)
  return note


def _finished(folder: Path, split: str, shard: int, count: int) -> ShardNote | None:
  path = folder / _shard_file(split, shard, count)
  note = folder / SHARD_NOTES / f"{path.name}.json"
  if not (path.exists() and note.exists()):
    return None
  read = ShardNote(**json.loads(note.read_text()))
  return read if _sha256(path) == read.sha256 else None


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


def _missing(folder: Path) -> list[str]:
  """Shards that a complete cache once had; a cache that `seqio_cache_tasks` wrote is not looked into."""
  if not (folder / MANIFEST).exists():
    return []
  files = json.loads((folder / MANIFEST).read_text()).get("sha256", {})
  return [file for file in files if not (folder / file).exists()]


def _shard_file(split: str, shard: int, count: int) -> str:
  return f"{split}.tfrecord-{shard:05d}-of-{count:05d}"


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
