"""Training batches: deterministic, resumable to the bit, nothing cut in silence. Evaluation examples."""

import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from slm_jax.batch import Batch
from slm_jax.data.augmentation import AugmentationConfig
from slm_jax.data.batches import TrainBatches
from slm_jax.data.eval_examples import EvalExamples
from slm_jax.data.seqio_cache import cache_task
from slm_jax.data.share_stream import drop_over_long
from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.data.speech_tasks import add_speech_task
from slm_jax.errors import UserError

SIZE = 24
LENGTHS = {"audio": 16_000, "inputs": 16, "targets": 28}
CLEAN = AugmentationConfig(noise_probability=0.0, room_probability=0.0, max_lead=0.0)


RATE = 8_000


class ToneSynthesizer:
  """Speaks in tones, 10 ms a letter, the same for the same arguments; has no voice to vary."""

  def synthesize(self, text, language, voice, seed, *, vary=False):
    time = np.arange(len(text) * RATE // 100) / RATE
    pitch = 200 + 50 * ord(text[0]) % 700 + seed % 100
    return (8_000 * np.sin(2 * np.pi * pitch * time)).astype(np.int16), RATE


@pytest.fixture
def speech(registry, vocabulary):
  """Mixture "spoken" of two cached tasks of tones."""
  for seed, kind in enumerate(("repeat", "translate")):
    source = MiniSpeechSource(
      kind,
      {"train": SIZE, "validation": 6},
      seed=seed,
      examples_per_shard=6,
      augmentation=CLEAN,
      synthesizer=ToneSynthesizer,
    )
    add_speech_task(f"spoken_{kind}", source, vocabulary)
    cache_task(f"spoken_{kind}", registry, quiet=True)
  seqio.MixtureRegistry.add("spoken", ["spoken_repeat", "spoken_translate"], default_rate=1.0)


def batches(name="spoken", lengths=LENGTHS, **kwargs):
  return TrainBatches(name, task_feature_lengths=lengths, **{"batch_size": 4, **kwargs})


def take(source, count):
  return [next(source) for _ in range(count)]


def same(first, second):
  return all(
    np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a
  )


def test_fields_of_a_batch(speech):
  batch = Batch.from_dict(next(batches()))
  assert batch.audio.shape == (4, 16_000) and batch.audio.dtype == np.int16
  assert batch.encoder_input_tokens.shape == (4, 16)
  positions = np.arange(16_000)
  assert not batch.audio[positions >= batch.audio_lengths[:, None]].any()
  assert (batch.audio_lengths > 1_000).all() and (np.abs(batch.audio).max(axis=1) > 3_000).all()
  assert (batch.decoder_input_tokens[:, 1:] == batch.decoder_target_tokens[:, :-1]).all()
  real = batch.decoder_loss_weights.sum(axis=1).astype(int)
  assert (batch.decoder_target_tokens[np.arange(4), real - 1] == 1).all()  # EOS last


def test_seed_alone_decides_the_order(speech):
  first, again, other = (take(batches(seed=seed), 5) for seed in (1, 1, 2))
  assert same(first, again)
  assert not same(first, other)


def test_restored_position_continues_bit_for_bit(speech, tmp_path):
  lengths = {**LENGTHS, "audio": 7_000}  # some are dropped on the way
  run = batches(lengths=lengths)
  take(run, 7)
  run.save(str(tmp_path))
  at_save = run.skipped
  following = take(run, 15)  # past the end of the epoch
  resumed = batches(lengths=lengths)
  take(resumed, 3)
  resumed.restore(str(tmp_path))
  assert resumed.skipped == at_save
  assert same(following, take(resumed, 15))
  assert resumed.skipped == run.skipped


def bytes_read() -> int:
  """By this process so far, from files and whatever else."""
  return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_restoring_a_late_position_reads_no_more_than_an_early_one(speech, tmp_path):
  def cost(step: int) -> tuple[int, int]:
    folder = tmp_path / str(step)
    folder.mkdir()
    run = batches()
    take(run, step)
    run.save(str(folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    del run
    resumed = batches()
    before = bytes_read()
    resumed.restore(str(folder))
    next(resumed)
    return bytes_read() - before, size

  cost(1)  # what is loaded once
  (early, early_size), (late, late_size) = cost(10), cost(200)  # one epoch is 12 steps
  assert late < 1.5 * early and late_size < 1.5 * early_size


def test_position_of_another_pipeline_is_refused(speech, tmp_path):
  batches().save(str(tmp_path))
  with pytest.raises(UserError, match="seed=0, this run has 1"):
    batches(seed=1).restore(str(tmp_path))
  with pytest.raises(UserError, match="no saved data position"):
    batches().restore(str(tmp_path / "elsewhere"))


def rows(source, count):
  return [batch["decoder_target_tokens"].tobytes() for batch in take(source, count)]


def test_shares_are_disjoint_and_an_epoch_has_every_example_once(speech):
  # SeqIO shuffles across the ends of epochs; without its buffer they are exact.
  seqio.TaskRegistry.get("spoken_repeat")._shuffle_buffer_size = 1
  whole = rows(batches("spoken_repeat", batch_size=1), SIZE)
  assert len(set(whole)) == SIZE
  halves = take(batches("spoken_repeat", batch_size=2, num_shards=2), SIZE // 2)
  targets = np.concatenate([batch["decoder_target_tokens"] for batch in halves])
  assert sorted(row.tobytes() for row in targets) == sorted(whole)


def test_shares_mix_their_tasks_independently(speech):
  steps = take(batches(batch_size=2, num_shards=2), 20)
  source = batches(batch_size=2, num_shards=2)
  tasks = []
  for _ in steps:
    next(source)
    tasks.append([name.rsplit("-", 1)[0] for name in source.example_ids])
  assert any(first == second for first, second in tasks)
  assert any(first != second for first, second in tasks)


BUCKETS = ({**LENGTHS, "audio": 5_000}, LENGTHS)


class Meeting:
  """What processes tell one another, where they are threads."""

  def __init__(self, count):
    self._said = [None] * count
    self._barrier = threading.Barrier(count, timeout=60)

  def gather(self, index, value):
    self._said[index] = json.loads(json.dumps(value))
    self._barrier.wait()
    everyone = list(self._said)
    self._barrier.wait()
    return everyone


# Two examples in a row of the LM, each second of speech four positions; the shorter are not all two to a row.
SHARED = {
  "buckets": (
    {**BUCKETS[0], "targets": 20, "lm_inputs": 18, "lm_targets": 20},
    {**LENGTHS, "lm_inputs": 26, "lm_targets": 30},
  ),
  "examples_per_lm_row": 2,
  "speech_positions": lambda samples, longest: -(-samples // 4_000),
}


def test_examples_that_share_rows_of_the_lm_fit_into_them(speech):
  run = batches(batch_size=8, **SHARED)
  used = 0
  for _ in range(30):
    batch = next(run)
    shared = batch["lm_rows"]
    texts = [batch[name] for name in ("encoder_input_tokens", "decoder_target_tokens")]
    inputs, targets = (np.count_nonzero(x, axis=1) for x in texts)
    inputs = inputs + -(-batch["audio_lengths"] // 4_000)
    assert inputs.reshape(4, 2).sum(axis=1).max() <= shared.inputs
    assert targets.reshape(4, 2).sum(axis=1).max() <= shared.targets
    used += np.count_nonzero(targets)
    empty = targets == 0
    assert not inputs[empty].any() and not batch["audio"][empty].any()
    assert len(run.example_ids) == 8 - empty.sum()
  assert 200 < used < 240  # some rows of padding
  small = ({**SHARED["buckets"][1], "lm_targets": 27},)
  with pytest.raises(UserError, match="lm_targets=27 of .*: expected 28, .* to 56"):
    batches(batch_size=8, **{**SHARED, "buckets": small})


@pytest.mark.parametrize("shapes", [{"buckets": BUCKETS}, SHARED], ids=["own rows", "shared rows"])
def test_rows_are_the_same_whoever_reads_them(speech, tmp_path, shapes):
  """Two processes' rows, of which two are on both, are one process's; so they are from a position that
  one process has saved, and one's from theirs."""

  def read(rows=None, own_rows=None, **kwargs):
    return batches(batch_size=8, num_shards=2, rows=rows, own_rows=own_rows, **shapes, **kwargs)

  parts = [range(5), range(3, 8)], [range(5), range(5, 8)]
  meeting = Meeting(2)

  def pair():
    return [
      read(rows, own, gather=functools.partial(meeting.gather, i))
      for i, (rows, own) in enumerate(zip(*parts, strict=True))
    ]

  def check(whole, processes):
    for _ in range(5):
      batch = next(whole)
      with ThreadPoolExecutor() as threads:
        both = list(threads.map(next, processes))
      ids = []
      for rows, process, part in zip(parts[0], processes, both, strict=True):
        assert part.pop("lm_rows", None) == batch.get("lm_rows")
        for name in part:
          np.testing.assert_array_equal(part[name], batch[name][list(rows)])
        ids += process.example_ids
      assert ids == whole.example_ids
      assert len(ids) == np.count_nonzero(batch["audio_lengths"]) > 0

  whole, processes = read(), pair()

  def save(folder, *sources):
    folder.mkdir()
    for source in sources:
      source.save(str(folder))
    return str(folder)

  check(whole, processes)
  one, several = save(tmp_path / "one", whole), save(tmp_path / "several", *processes)
  resumed, resumed_processes = read(), pair()
  for process in resumed_processes:
    process.restore(one)
  resumed.restore(several)
  total = [sum(p.skipped.get(name, 0) for p in resumed_processes) for name in LENGTHS]
  assert total == [resumed.skipped[name] for name in LENGTHS]
  check(resumed, resumed_processes)
  with pytest.raises(UserError, match="batch_size=8, this run has 16"):
    batches(batch_size=16).restore(one)


def test_over_long_examples_are_left_out_and_counted(speech):
  task = seqio.TaskRegistry.get("spoken_repeat")
  sizes = [
    len(row["audio"])
    for row in task.get_dataset(use_cached=True, shuffle=False).as_numpy_iterator()
  ]
  limit = int(np.median(sizes))
  long = sum(size > limit for size in sizes)
  run = batches("spoken_repeat", {**LENGTHS, "audio": limit}, batch_size=1)
  history = []
  for _ in range(3 * (SIZE - long)):
    row = next(run)
    assert row["audio_lengths"] <= limit
    history.append(run.skipped["audio"])
  assert history == sorted(history)
  # The shuffle lets at most its buffer, here an epoch or more, run ahead.
  assert 2 * long <= history[-1] <= 4 * long + SIZE
  assert run.skipped["inputs"] == run.skipped["targets"] == 0


def test_drop_over_long_counts_exactly():
  data = tf.data.Dataset.from_generator(
    lambda: ({"a": [0] * a, "b": [0] * b} for a, b in [(1, 1), (9, 1), (1, 9), (9, 9), (2, 2)]),
    output_signature={name: tf.TensorSpec([None], tf.int32) for name in "ab"},
  )
  kept = list(drop_over_long(data, {"a": 5, "b": 5}).as_numpy_iterator())
  assert [len(row["a"]) for row in kept] == [1, 2]
  assert [row["dropped"].tolist() for row in kept] == [[0, 0], [2, 2]]
  assert [row["sizes"].tolist() for row in kept] == [[1, 1], [2, 2]]


def test_lengths_that_nothing_fits_are_the_users_mistake(speech, monkeypatch):
  monkeypatch.setattr("slm_jax.data.share_stream.MAX_DROPPED_IN_A_ROW", 50)
  with pytest.raises(UserError, match="50 examples in a row.*'audio': 100"):
    next(batches(lengths={**LENGTHS, "audio": 100}))


def test_mistakes_are_named(speech, registry, vocabulary):
  with pytest.raises(UserError, match="'testing'.*train"):
    batches(split="testing")
  with pytest.raises(UserError, match="'inptus'"):
    batches(lengths={"inptus": 16, "targets": 28})
  with pytest.raises(UserError, match="converter"):
    batches(lengths={"audio": 100, "inputs": 16})
  add_speech_task("bare", MiniSpeechSource("repeat", {"train": 1}, seed=9), vocabulary)
  with pytest.raises(UserError, match="no offline cache of .*'bare'"):
    batches("bare")


def test_examples_for_evaluation(speech):
  examples = EvalExamples("spoken_translate")
  first, again = list(examples), list(examples)
  assert len(first) == 6 and [e.id for e in first] == [e.id for e in again]
  source = seqio.TaskRegistry.get("spoken_translate").source
  for example in first:
    made = source.utterance("validation", int(example.id.rsplit("-", 1)[1]))
    assert example.audio.dtype == np.int16 and example.audio.ndim == 1
    for name in ("task", "language", "target_language", "transcript", "instruction", "voice"):
      assert getattr(example, name) == getattr(made, name)
    assert example.target == made.target != example.transcript
  limit = sorted(len(e.audio) for e in first)[2]
  short = EvalExamples("spoken_translate", max_samples=limit)
  assert len(list(short)) + short.skipped == 6 and short.skipped >= 1
  assert [e.id for e in EvalExamples("spoken_translate", max_examples=2)] == [
    e.id for e in first[:2]
  ]


def test_a_speech_cache_is_read_one_example_from_each_shard_in_turn(speech):
  dataset = seqio.TaskRegistry.get("spoken_repeat").get_dataset(use_cached=True, shuffle=False)
  numbers = [int(row["id"].rsplit(b"-", 1)[1]) for row in dataset.as_numpy_iterator()]
  assert [number // 6 for number in numbers] == 6 * [0, 1, 2, 3]
