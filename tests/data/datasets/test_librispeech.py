"""LibriSpeech in its published layout through TFDS's builder, as SeqIO examples; changed archives are refused."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from slm_jax.data.datasets.librispeech import NAME, SPLITS, librispeech
from slm_jax.data.datasets.recipes import Transcribe
from slm_jax.data.seqio_cache import cache_task
from slm_jax.data.speech_tasks import add_speech_task
from slm_jax.errors import UserError

SUBSETS = (
  "dev-clean dev-other test-clean test-other train-clean-100 train-clean-360 train-other-500"
).split()
RECIPE = Transcribe(instructions=("Recognize this speech in {language}.",), lower_case=True)


def write_subset(archives, subset, utterances=3, seconds=0.1):
  speaker, chapter = 80 + SUBSETS.index(subset), 123
  folder = f"LibriSpeech/{subset}/{speaker}/{chapter}/{speaker}-{chapter}"
  files = {
    "LibriSpeech/SPEAKERS.TXT": f"; READER\n{speaker} | F | {subset} | 25.03 | A B\n",
    "LibriSpeech/CHAPTERS.TXT": f"{chapter} | {speaker} | 8.4 | {subset} | 1 | 2 | A | B\n",
    f"{folder}.trans.txt": "".join(
      f"{speaker}-{chapter}-{n:04d} IT'S {subset.upper()} {n}\n" for n in range(utterances)
    ),
  }
  for n in range(utterances):
    files[f"{folder}-{n:04d}.flac"] = archives.audio(seconds, tone=300 + 100 * n)
  return archives.pack(f"{subset}.tar.gz", files)


@pytest.fixture
def prepared(archives, tmp_path, monkeypatch):
  """TFDS's LibriSpeech, made of three utterances a subset, whose checksums TFDS is told."""
  builder = tfds.builder(NAME, data_dir=str(tmp_path / "tfds"))
  monkeypatch.undo()  # TFDS downloads by another method, and finds its archives in manual_dir
  for subset in SUBSETS:
    path = write_subset(archives, subset)
    [info] = [i for i in builder.url_infos.values() if i.filename == path.name]
    monkeypatch.setattr(info, "size", path.stat().st_size)
    monkeypatch.setattr(info, "checksum", hashlib.sha256(path.read_bytes()).hexdigest())
  manual = tfds.download.DownloadConfig(manual_dir=str(archives.folder))
  builder.download_and_prepare(download_config=manual)
  monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path / "tfds"))
  return builder


def test_every_subset_arrives_where_it_belongs(prepared, archives):
  source = librispeech(RECIPE)
  sizes = {split: source.num_input_examples(split) for split in SPLITS}
  assert sizes == {"train": 9, "validation": 6, **dict.fromkeys(list(SPLITS)[2:], 3)}
  made = list(source.make_examples("train", 0, 9))
  assert {e["id"].decode().split("-")[0] for e in made} == {"84", "85", "86"}
  assert len({e["id"] for e in made}) == 9
  for example in made:
    assert example["target"] == example["transcript"] == example["target"].lower()
    assert example["target"].startswith(b"it's train-") and example["language"] == b"en"
    assert example["instruction"] == b"Recognize this speech in English."
    assert len(np.frombuffer(example["audio"], "<i2")) == 1_600
  # Any range is a part of the whole, across the borders of subsets too; so in another process.
  again = pickle.loads(pickle.dumps(source))
  for start, stop in ((0, 2), (2, 7), (7, 9)):
    assert list(again.make_examples("train", start, stop)) == made[start:stop]


def test_long_audio_is_dropped_and_damaged_audio_named(prepared):
  source = librispeech(RECIPE, max_seconds=0.05)
  assert not list(source.make_examples("test_clean", 0, 3))
  assert source.dropped == {"audio longer than 0.05 s": 3}
  damaged = librispeech(RECIPE)
  read = damaged.read
  damaged.read = lambda e: read({**e, "speech": e["speech"][:60]})
  assert not list(damaged.make_examples("test_clean", 0, 3))
  assert len(damaged.problems) == 3 and f"{NAME}/test_clean:82-123-" in str(damaged.problems)


def test_a_shard_cut_short_keeps_the_records_before_the_cut(prepared):
  source = librispeech(RECIPE)
  whole = list(source.make_examples("test_clean", 0, 3))
  (path,) = Path(prepared.data_dir).glob("*test_clean.*")
  path.write_bytes(path.read_bytes()[:-20])
  assert list(source.make_examples("test_clean", 0, 3)) == whole[:2]
  (problem,) = source.problems
  assert problem.name == f"{NAME}/test_clean:2" and "cannot be read from here on" in problem.reason
  path.unlink()
  assert not list(source.make_examples("test_clean", 0, 3)) and source.problems[-1].count == 3


def test_task_is_cached_and_read(prepared, registry, vocabulary):
  add_speech_task("libri_small", librispeech(RECIPE), vocabulary)
  cache_task("libri_small", registry, quiet=True)
  task = seqio.TaskRegistry.get("libri_small")
  dataset = task.get_dataset(None, "test_other", shuffle=False, use_cached=True)
  examples = list(dataset.as_numpy_iterator())
  assert sorted(e["targets_pretokenized"] for e in examples) == [
    f"it's test-other {n}".encode() for n in range(3)
  ]
  assert all(e["audio"].dtype == np.int16 and len(e["audio"]) == 1_600 for e in examples)


def test_changed_archive_is_refused(archives, tmp_path):
  for subset in SUBSETS:
    write_subset(archives, subset)
  builder = tfds.builder(NAME, data_dir=str(tmp_path / "tfds"))
  manual = tfds.download.DownloadConfig(manual_dir=str(archives.folder))
  with pytest.raises(tfds.download.download_manager.NonMatchingChecksumError):
    builder.download_and_prepare(download_config=manual)


def test_unprepared_data_set_says_how_to_prepare_it(tmp_path, monkeypatch):
  monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
  with pytest.raises(
    UserError, match="is not prepared in .*datasets.prepare librispeech/lazy_decode,"
  ):
    librispeech(RECIPE).list_shards("train")
