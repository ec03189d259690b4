"""`slm_jax cache`: the frozen speech encoder's frames of a run's data, made once."""

import argparse
import sys
import time
from collections.abc import Iterator

from slm_jax.cli import processes
from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = (
  "slm_jax cache --gin_file=experiments/mini.gin --gin.train.frame_cache=\"'/data/frames'\"\n"
  "  slm_jax train --gin_file=experiments/mini.gin --gin.train.frame_cache=\"'/data/frames'\" "
  "--gin.MODEL_DIR=\"'runs/mini'\""
)
_SECONDS_BETWEEN_LINES = 10.0


def run(argv: list[str]) -> int:
  """Fills the frame cache of a training run; returns the exit status."""
  parser = parser_for("cache", EXAMPLE)
  processes.add_flags(parser)
  flags, bindings = parse(parser, argv)
  where = processes.processes_config(flags)
  from slm_jax import config
  from slm_jax.training.processes import joined

  bindings = ["MODEL_DIR='model_dir'", *bindings]
  config.load(flags.gin_file, bindings, flags.gin_search_paths.split(","))
  train = config.build("train")
  if train.frame_cache is None:
    raise UserError("train.frame_cache is None: bind the folder that frames are to be kept in")
  with joined(where) as run_processes:
    _fill(train, flags, run_processes)
  return 0


def _fill(train, flags: argparse.Namespace, run_processes) -> None:
  import jax

  from slm_jax.training.frame_cache import create
  from slm_jax.training.frame_encoding import FrameEncoder
  from slm_jax.training.frozen_frames import FrozenFrames, check_cacheable
  from slm_jax.training.sharding import MeshConfig, make_mesh

  check_cacheable(train.model)
  splits = list(_splits(train, flags))
  # Processes share the data, not the work on an utterance: each uses its own devices alone.
  devices = jax.local_devices()
  rows = -(-train.train_dataset.batch_size // run_processes.count)
  rows = -(-rows // len(devices)) * len(devices)
  frames = FrozenFrames(train.model, train.model.build(), make_mesh(MeshConfig(), devices))
  place = create(train.frame_cache, frames)
  progress = _Progress(splits, run_processes)
  encoder = FrameEncoder(
    frames, place, sample_lengths=_sample_lengths(train), batch_size=rows, report=progress.show
  )
  for task, split in splits:
    progress.begin(f"{task.name}, {split}")
    encoder.add(_utterances(task, split, run_processes))
  encoder.close()
  counts = encoder.counts
  print(
    f"[slm_jax] {counts.encoded} utterances encoded ({counts.seconds / 3600:.2f} h), {counts.known} were there, "
    f"{counts.too_long} too long and left out; frames: {place}",
    file=sys.stderr,
  )


def _datasets(train) -> list:
  from slm_jax.training.config import DatasetConfig

  datasets = [train.train_dataset, train.eval_dataset]
  found = [dataset for dataset in datasets if isinstance(dataset, DatasetConfig)]
  if not found or any("audio" not in dataset.task_feature_lengths for dataset in found):
    raise UserError("train.frame_cache: the run's data have no audio to encode")
  return found


def _sample_lengths(train) -> tuple[int, ...]:
  shapes = [
    shape
    for dataset in _datasets(train)
    for shape in (*dataset.length_buckets, dataset.task_feature_lengths)
  ]
  return tuple(sorted({shape["audio"] for shape in shapes}))


def _splits(train, flags: argparse.Namespace) -> Iterator[tuple]:
  """(task, split) of everything that the run reads, each once."""
  import seqio

  from slm_jax.data import registry
  from slm_jax.data.provider import hide_accelerators
  from slm_jax.data.utterances import check_repeatable

  hide_accelerators()
  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  seen = set()
  for dataset in _datasets(train):
    name = dataset.mixture_or_task_name
    registry.find(name, dataset.mixture_or_task_module)
    registry.fill_caches(name, num_processes=dataset.cache_processes)
    for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
      if (task.name, dataset.split) not in seen:
        seen.add((task.name, dataset.split))
        check_repeatable(task, dataset.split)
        yield task, dataset.split


def _utterances(task, split: str, run_processes):
  from slm_jax.data.utterances import utterances

  return utterances(task, split, share=run_processes.index, num_shares=run_processes.count)


class _Progress:
  """A line every few seconds."""

  def __init__(self, splits: list[tuple], run_processes):
    sizes = [
      task.get_cached_stats(split).get("examples")
      if task.supports_caching
      else task.num_input_examples(split)
      for task, split in splits
    ]
    # A source need not know how many it has.
    self._total = sum(sizes) // run_processes.count if all(sizes) else None
    self._began = self._said = time.monotonic()
    self._what = ""

  def begin(self, what: str) -> None:
    """Names what is read from now on."""
    self._what = what

  def show(self, counts) -> None:
    """Reports, if it is time to."""
    now = time.monotonic()
    if now - self._said < _SECONDS_BETWEEN_LINES:
      return
    self._said, passed = now, now - self._began
    left = ""
    if self._total:
      seconds = int(passed / counts.read * max(0, self._total - counts.read))
      left = f" of {self._total}, ETA {seconds // 60}:{seconds % 60:02d}"
    print(
      f"[slm_jax] {self._what}: {counts.read}{left}; {counts.seconds / passed:.0f} s audio/s encoded, "
      f"{counts.known} were there, {counts.too_long} too long",
      file=sys.stderr,
      flush=True,
    )
