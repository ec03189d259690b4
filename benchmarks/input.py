"""The input path beside a PyTorch loader that decodes with librosa: the same files, in turns.

  python benchmarks/input.py --output=input.json

Files as collections of recordings have them, made here: WAV at 16 and 44.1 kHz, FLAC at 48, Ogg Vorbis at 24 and MP3 at
44.1 kHz, log-normal durations (median 6 s, sigma 0.6) in 1 to 30 s, a sentence each. Two processes take turns:

* `ours`: a task registered over the manifest, through its offline cache and `TrainBatches`, with length buckets;
* `librosa`: a `torch.utils.data.DataLoader` whose items are `librosa.load(path, sr=16000)` and SentencePiece's ids,
  shuffled, each batch as long as its longest row.

Measured: `decode`, every file to 16 kHz; `first_epoch`, all of it from the files to batches (ours fills the cache on
the way, and opens the data set); `epoch`, later ones, from what is open. Seconds of audio for each second of CPU,
children's included, are of one core; threads that wait do not count. Printed is JSON. Needs the `test` extra (PyTorch).
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from turns import serve, take_turns

from slm_jax.audio.files import SAMPLE_RATE

KINDS = (
  ("wav", 16_000, "WAV", "PCM_16"),
  ("wav", 44_100, "WAV", "PCM_16"),
  ("flac", 48_000, "FLAC", "PCM_16"),
  ("ogg", 24_000, "OGG", "VORBIS"),
  ("mp3", 44_100, "MP3", "MPEG_LAYER_III"),
)
VOCABULARY = "slm_jax/assets/mini/spiece.model"
INSTRUCTION = "Repeat the sentence."
LENGTHS = {"audio": 480_000, "inputs": 16, "targets": 64}
BATCH_SIZE = 16
WORKERS = ("ours", "librosa")
TASKS = ("decode", "first_epoch", "epoch")


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--files", type=int, default=400)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--output", help="the JSON goes here too")
  parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def make_files(folder: Path, count: int) -> float:
  """Recordings and `manifest.jsonl`; returns their seconds."""
  rng = np.random.default_rng(0)
  lines, total = [], 0.0
  for i in range(count):
    suffix, rate, container, subtype = KINDS[i % len(KINDS)]
    seconds = float(np.clip(rng.lognormal(np.log(6), 0.6), 1, 30))
    time = np.arange(int(seconds * rate)) / rate
    sound = 0.2 * np.sin(2 * np.pi * rng.uniform(90, 300) * time) * np.sin(7 * time) ** 2
    sound += 0.05 * rng.normal(size=len(time))
    name = f"{i:04d}.{suffix}"
    soundfile.write(folder / name, sound, rate, format=container, subtype=subtype)
    text = " ".join(["the bird sings"] * max(1, int(seconds / 2)))
    lines.append(json.dumps({"audio": name, "text": text}))
    total += len(time) / rate
  (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
  return total


def cpu_seconds() -> float:
  """Of this process and of its children that have ended."""
  used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return sum(one.ru_utime + one.ru_stime for one in used)


class Ours:
  """slm_jax's way."""

  def __init__(self, folder: Path):
    import slm_jax.data.batches as batches
    from slm_jax.audio.files import read_audio
    from slm_jax.data import seqio_cache
    from slm_jax.data.speech_tasks import register_speech_task

    self._folder, self._cache = folder, folder / "cache"
    self._read, self._fill, self._open = read_audio, seqio_cache.cache_task, batches.TrainBatches
    register_speech_task(
      "input",
      str(folder / "manifest.jsonl"),
      instruction=INSTRUCTION,
      splits={"train": 1.0},
      vocabulary=VOCABULARY,
    )
    self._count = len((folder / "manifest.jsonl").read_text().splitlines())

  def decode(self) -> float:
    paths = (
      p for p in sorted(self._folder.iterdir()) if p.suffix in (".wav", ".flac", ".ogg", ".mp3")
    )
    return sum(len(self._read(path)) for path in paths) / SAMPLE_RATE

  def first_epoch(self) -> float:
    shutil.rmtree(self._cache, ignore_errors=True)
    self._fill("input", self._cache, quiet=True)
    buckets = [{**LENGTHS, "audio": SAMPLE_RATE * seconds} for seconds in (4, 8, 12, 20, 30)]
    self._batches = self._open(
      "input", task_feature_lengths=LENGTHS, batch_size=BATCH_SIZE, buckets=buckets
    )
    return self.epoch()

  def epoch(self) -> float:
    samples = 0
    for _ in range(self._count // BATCH_SIZE):
      samples += int(next(self._batches)["audio_lengths"].sum())
    return samples / SAMPLE_RATE


class Librosa:
  """What one writes on an afternoon."""

  def __init__(self, folder: Path):
    import librosa
    import sentencepiece
    import torch

    torch.set_num_threads(1)
    self._load, self._torch = librosa.load, torch
    self._rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    self._folder = folder
    self._pieces: Any = sentencepiece.SentencePieceProcessor(model_file=VOCABULARY)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> tuple[np.ndarray, list[int], list[int]]:
    row = self._rows[i]
    audio, _ = self._load(self._folder / row["audio"], sr=SAMPLE_RATE)
    return audio, [*self._pieces.encode(INSTRUCTION), 1], [*self._pieces.encode(row["text"]), 1]

  def _collate(self, rows: list) -> dict[str, Any]:
    torch = self._torch
    columns = zip(*rows, strict=True)
    padded = [
      torch.nn.utils.rnn.pad_sequence([torch.as_tensor(x) for x in column], batch_first=True)
      for column in columns
    ]
    lengths = torch.tensor([len(row[0]) for row in rows])
    return {"audio": padded[0], "lengths": lengths, "inputs": padded[1], "targets": padded[2]}

  def decode(self) -> float:
    return sum(len(self[i][0]) for i in range(len(self))) / SAMPLE_RATE

  def epoch(self) -> float:
    loader = self._torch.utils.data.DataLoader(
      self, batch_size=BATCH_SIZE, shuffle=True, collate_fn=self._collate, drop_last=True
    )
    return sum(int(batch["lengths"].sum()) for batch in loader) / SAMPLE_RATE

  first_epoch = epoch


def work(flags: argparse.Namespace) -> None:
  """The process of one side."""
  worker = Ours(Path(flags.folder)) if flags.worker == "ours" else Librosa(Path(flags.folder))

  def task(name: str):
    def run() -> dict[str, np.ndarray]:
      before = cpu_seconds()
      seconds = getattr(worker, name)()
      return {"audio": np.asarray(seconds), "cpu": np.asarray(cpu_seconds() - before)}

    return run

  serve({name: task(name) for name in TASKS}, Path(flags.folder), flags.worker)


def main() -> None:
  flags = parse(sys.argv[1:])
  if flags.worker:
    work(flags)
    return
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    total = make_files(folder, flags.files)
    environment = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "SLM_JAX_CACHE_DIR": name}
    os.environ |= environment
    commands = {
      worker: [sys.executable, __file__, "--worker", worker, "--folder", name] for worker in WORKERS
    }
    report: dict[str, Any] = {"files": flags.files, "audio_seconds": round(total, 1)}
    times = take_turns(commands, TASKS, flags.rounds)
    for task in TASKS:
      found = {}
      for worker in WORKERS:
        last = np.load(folder / f"{worker}-{task}.npz")
        wall = statistics.median(round_["wall"] for round_ in times[task][worker])
        found[worker] = {
          "audio_seconds": round(float(last["audio"]), 1),
          "per_cpu_second": round(float(last["audio"] / last["cpu"]), 1),
          "per_second": round(float(last["audio"]) / wall, 1),
        }
      ours, theirs = (found[worker]["per_cpu_second"] for worker in WORKERS)
      report[task] = found | {"ours_times_faster_by_cpu": round(ours / theirs, 2)}
  text = json.dumps(report, indent=2)
  print(text)
  if flags.output:
    Path(flags.output).write_text(text + "\n")


if __name__ == "__main__":
  main()
