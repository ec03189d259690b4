"""The offline cache: SeqIO reads it, it is resumable, reproducible and never silently stale."""

import hashlib
import json
import os

import numpy as np
import pytest
import seqio
import tensorflow as tf

from slm_jax.data.example_source import ExampleSource
from slm_jax.data.seqio_cache import cache_task
from slm_jax.data.speech_tasks import add_text_task
from slm_jax.data.text_corpus import MiniTextSource
from slm_jax.errors import UserError

SIZES = {"train": 22, "validation": 4}


def add(vocabulary, name="tiny", seed=7, per_shard=5):
  source = MiniTextSource(SIZES, seed=seed, examples_per_shard=per_shard)
  return add_text_task(name, source, vocabulary)


def read(name, split="train", **kwargs):
  task = seqio.TaskRegistry.get(name)
  dataset = task.get_dataset(None, split, use_cached=True, shuffle=False, **kwargs)
  return {example["id"]: example for example in dataset.as_numpy_iterator()}


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.glob("[!.]*.tfrecord-*")}


def test_seqio_reads_what_the_source_makes(registry, vocabulary):
  task = add(vocabulary)
  folder = cache_task("tiny", quiet=True, cache_dir=registry)
  assert task.cache_dir == str(folder)
  assert {p.name for p in folder.glob("*.json")} >= {"info.train.json", "stats.validation.json"}
  assert task.get_cached_stats("train")["examples"] == SIZES["train"]
  for split, size in SIZES.items():
    cached = read("tiny", split)
    made = list(task.source.make_examples(split, 0, size))
    assert set(cached) == {example["id"] for example in made}
    for example in made:
      row = cached[example["id"]]
      for name in ("sentence", "instruction", "target", "language", "target_language", "task"):
        assert row[name] == example[name]
      # Sentence and instruction are tokenised apart: the sentence's tokens are those of its speech.
      sentence, instruction = (
        vocabulary.encode(example[n].decode()) for n in ("sentence", "instruction")
      )
      assert row["inputs"].tolist() == [*sentence, *instruction, vocabulary.eos_id]
      assert row["targets"].tolist() == [*vocabulary.encode(example["target"].decode()), 1]


def test_shards_of_readers_are_disjoint_and_complete(registry, vocabulary):
  add(vocabulary)
  cache_task("tiny", quiet=True, cache_dir=registry)
  parts = [set(read("tiny", shard_info=seqio.ShardInfo(index, 3))) for index in range(3)]
  assert sum(map(len, parts)) == len(set.union(*parts)) == SIZES["train"]


def test_bytes_do_not_depend_on_processes_or_on_the_run(registry, vocabulary, tmp_path):
  add(vocabulary)
  one = cache_task("tiny", tmp_path / "one", num_processes=1, quiet=True)
  two = cache_task("tiny", tmp_path / "two", num_processes=2, quiet=True)
  assert contents(one) == contents(two) and len(contents(one)) == 6
  for folder in (one, two):
    recorded = json.loads((folder / "manifest.json").read_text())["shards"]
    assert {name: shard["sha256"] for name, shard in recorded.items()} == {
      name: hashlib.sha256(data).hexdigest() for name, data in contents(folder).items()
    }


@pytest.mark.parametrize("complete", [True, False])
def test_missing_and_damaged_shards_alone_are_made_again(registry, vocabulary, complete):
  add(vocabulary)
  folder = cache_task("tiny", quiet=True, cache_dir=registry)
  before = contents(folder)
  lost, damaged, *kept = sorted(before)
  if not complete:
    (folder / "COMPLETED").unlink()
    (folder / lost).unlink()
  (folder / damaged).write_bytes(before[damaged][:-1])
  times = {name: os.stat(folder / name).st_mtime_ns for name in kept}
  cache_task("tiny", quiet=True, cache_dir=registry)
  assert contents(folder) == before and (folder / "COMPLETED").exists()
  assert times == {name: os.stat(folder / name).st_mtime_ns for name in kept}


def test_cache_of_other_data_is_made_again(registry, vocabulary, capsys):
  add(vocabulary)
  folder = cache_task("tiny", quiet=True, cache_dir=registry)
  before = contents(folder)
  seqio.TaskRegistry.remove("tiny")
  add(vocabulary, seed=8)
  cache_task("tiny", cache_dir=registry)
  assert "another version" in capsys.readouterr().out
  after = contents(folder)
  assert set(after) == set(before) and all(after[name] != before[name] for name in before)


class Faulty(ExampleSource):
  """Numbers; the first reading of candidate 5 fails if `fault` exists."""

  fields = {"number": tf.int64}

  def __init__(self, fault, keep=lambda n: True):
    super().__init__(["train"], examples_per_shard=2)
    self.fault, self.keep = fault, keep

  def num_input_examples(self, split):
    return 8

  def describe(self):
    return {}

  def make_examples(self, split, start, stop):
    for number in range(start, stop):
      if number == 5 and self.fault.exists():
        raise RuntimeError("power cut")
      if self.keep(number):
        yield {"number": np.asarray(number)}
      else:
        self.dropped["unwanted"] += 1


def add_numbers(source, name="numbers"):
  features = {"number": seqio.Feature(seqio.PassThroughVocabulary(10), rank=0, dtype=tf.int64)}
  steps = [seqio.CacheDatasetPlaceholder()]
  return seqio.TaskRegistry.add(name, source, features, steps, shuffle_buffer_size=2)


def test_interrupted_run_leaves_no_half_shard_and_continues(registry, tmp_path):
  fault = tmp_path / "fault"
  fault.touch()
  task = add_numbers(Faulty(fault))
  with pytest.raises(RuntimeError, match="power cut"):
    cache_task("numbers", quiet=True, cache_dir=registry)
  assert len(contents(registry / "numbers")) == 2 and not task.cache_dir
  fault.unlink()
  folder = cache_task("numbers", quiet=True, cache_dir=registry)
  assert not list(folder.glob(".*"))
  numbers = task.get_dataset(None, use_cached=True, shuffle=False).as_numpy_iterator()
  assert sorted(int(example["number"]) for example in numbers) == list(range(8))


def test_dropped_candidates_are_counted_and_none_left_is_an_error(registry, tmp_path):
  add_numbers(Faulty(tmp_path / "none", keep=lambda n: n % 3), "some")
  folder = cache_task("some", quiet=True, cache_dir=registry)
  assert json.loads((folder / "manifest.json").read_text())["dropped"] == {"train": {"unwanted": 3}}
  add_numbers(Faulty(tmp_path / "none", keep=lambda n: False), "nothing")
  with pytest.raises(UserError, match="no example is left.*unwanted.*8"):
    cache_task("nothing", quiet=True, cache_dir=registry)


def test_a_task_of_seqios_own_source_is_cached_after_its_preprocessors(registry, tmp_path):
  (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
  vocabulary = seqio.ByteVocabulary()

  def rekey(dataset):
    return dataset.map(lambda line: {"targets": vocabulary.encode_tf(line), "text": line})

  seqio.TaskRegistry.add(
    "lines",
    seqio.TextLineDataSource({"train": str(tmp_path / "lines.txt")}),
    {"targets": seqio.Feature(vocabulary)},
    [rekey, seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos],
  )
  cache_task("lines", quiet=True, cache_dir=registry)
  task = seqio.TaskRegistry.get("lines")
  rows = list(task.get_dataset(None, use_cached=True, shuffle=False).as_numpy_iterator())
  assert [row["text"].decode() for row in rows] == ["one", "two", "three"]
  assert rows[1]["targets"].tolist() == [*vocabulary.encode("two"), 1]
  assert rows[1]["targets"].dtype == np.int32


def test_task_without_a_cache_step_is_an_error(registry):
  features = {"targets": seqio.Feature(seqio.ByteVocabulary())}
  source = seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"])
  seqio.TaskRegistry.add("plain", source, features, [])
  with pytest.raises(ValueError, match="CacheDatasetPlaceholder"):
    cache_task("plain", quiet=True, cache_dir=registry)
