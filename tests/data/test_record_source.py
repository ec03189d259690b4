"""Recorded speech from tables: good records come through, bad ones are named, counted, bounded."""

import json
import pickle

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.data.example_source import BAD_EXAMPLES
from slm_jax.data.hints import Hints, write_pool
from slm_jax.data.record_columns import Columns
from slm_jax.data.record_source import RecordSettings, RecordSource, Split
from slm_jax.data.record_tables import ManifestTable
from slm_jax.data.registry import fill_caches
from slm_jax.data.seqio_cache import cache_task, left_out
from slm_jax.data.speech_tasks import add_speech_task, register_speech_task
from slm_jax.errors import UserError


def record(number, **changes):
  fields = {"audio": f"{number}.flac", "text": f"word {number}", "language": "en"}
  return {**fields, "speaker": ("ann", "bob")[number % 2], **changes}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
  """Ten recordings of 0.25 s at 8 kHz, and files that are none."""
  folder = tmp_path_factory.mktemp("recordings")
  time = np.arange(2_000) / 8_000
  for number in range(10):
    tone = 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * time)
    soundfile.write(folder / f"{number}.flac", tone, 8_000)
  soundfile.write(folder / "long.flac", np.full(8_000, 0.1), 8_000)
  soundfile.write(folder / "nan.wav", np.full(800, np.nan), 8_000, subtype="FLOAT")
  (folder / "empty.wav").touch()
  (folder / "text.wav").write_text("this is not audio")
  whole = (folder / "0.flac").read_bytes()
  (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
  return folder


def write(folder, lines):
  path = folder / f"manifest_{len(list(folder.glob('*.jsonl')))}.jsonl"
  raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
  path.write_bytes(b"\n".join(raw) + b"\n")
  return path


def source_of(manifest, *, wheres=None, share=0.01, per_shard=250, **settings):
  """A source of one manifest with a split for each of `wheres`, default one of all records."""
  table = ManifestTable(manifest)
  splits = {k: Split(table=table, where=v) for k, v in (wheres or {"train": {}}).items()}
  return RecordSource(
    splits, RecordSettings(**settings), max_problem_share=share, examples_per_shard=per_shard
  )


def examples(source, split="train"):
  return list(source.make_examples(split, 0, source.num_input_examples(split)))


def test_records_become_examples_at_16_khz(recordings):
  manifest = write(recordings, [record(n) for n in range(10)])
  source = source_of(manifest, task="repeat", instructions=("Repeat.",))
  made = examples(source)
  assert len(made) == 10 and not source.problems
  for number, example in enumerate(made):
    audio = np.frombuffer(example["audio"], "<i2")
    assert len(audio) == pytest.approx(4_000, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(audio))) * 16_000 / len(audio)
    assert peak == pytest.approx(200 + 50 * number, abs=4)
    assert example["transcript"] == example["target"] == f"word {number}".encode()
    assert example["instruction"] == b"Repeat." and example["voice"] in (b"ann", b"bob")


def test_splits_select_by_field(recordings):
  manifest = write(recordings, [record(n) for n in range(10)])
  wheres = {"train": {"speaker": ("ann",)}, "validation": {"speaker": ("bob",)}}
  source = source_of(manifest, wheres=wheres)
  speakers = {s: {example["voice"] for example in examples(source, s)} for s in wheres}
  assert speakers == {"train": {b"ann"}, "validation": {b"bob"}}
  assert source.num_input_examples("train") == 5
  with pytest.raises(UserError, match="split 'test' has none of the 10 records"):
    source_of(manifest, wheres={"test": {"speaker": ("eve",)}}).list_shards("test")


BAD = {
  "not UTF-8": b'{"audio": "0.flac", "text": "\xff", "language": "en"}',
  "not JSON": b'{"audio": "0.flac", ',
  "expected a JSON object, found list": b"[1]",
  "field 'text' is missing": record(1, text=" "),
  "field 'speaker' is list": record(2, speaker=[3]),
  "U+FFFD": record(2, text="na\ufffdve"),
  "field 'audio' is missing": record(3, audio=None),
  "does not exist": record(3, audio="nowhere.flac"),
  "is empty": record(4, audio="empty.wav"),
  "is a text file": record(5, audio="text.wav"),
  "NaN": record(5, audio="nan.wav"),
  "cut off|damaged after": record(5, audio="cut.flac"),
  "sample rate mislabelled: the record states 16000 Hz": record(6, sample_rate=16_000),
  "states 0.50 s of audio, there are 0.25 s: its sample rate": record(7, duration=0.5),
  "field 'duration' is 'long', expected a number": record(8, duration="long"),
  "field 'duration' is inf, expected a number": record(8, duration=float("inf")),
  "field 'text' is missing or empty": record(1, text=float("nan")),  # pandas' None
  "half of a surrogate pair": record(2, text="\ud800"),
  "field 'audio' is int, expected a path": record(3, audio=12),
  "field 'audio' is missing or empty": record(3, audio=float("nan")),
  "a list of other things than samples": record(4, audio=["0.flac"], sample_rate=8_000),
}


def test_every_bad_record_is_named_with_its_line(recordings):
  manifest = write(recordings, [record(0, sample_rate=8_000, duration=0.3), *BAD.values()])
  source = source_of(manifest, share=1.0)
  assert [example["transcript"] for example in examples(source)] == [b"word 0"]
  assert len(source.problems) == len(BAD)
  for line, (reasons, problem) in enumerate(zip(BAD, source.problems, strict=True), start=2):
    assert problem.name == f"{manifest}:{line}" and "\n" not in problem.reason
    assert any(reason in problem.reason for reason in reasons.split("|")), problem


def test_too_many_bad_lines_stop_before_any_audio_is_read(recordings):
  manifest = write(recordings, [*[record(n) for n in range(9)], BAD["not JSON"]])
  english = {"train": {"language": ("en",)}}
  with pytest.raises(UserError, match=r"1 of 10 records.*at most 1\.00%.*:10: not JSON"):
    source_of(manifest, wheres=english).list_shards("train")
  assert source_of(manifest, wheres=english, share=0.1).list_shards("train")


def test_cache_names_bad_examples_and_keeps_within_the_budget(
  recordings, registry, vocabulary, capsys
):
  manifest = write(recordings, [*[record(n) for n in range(9)], record(9, audio="later.flac")])
  for name, share in (("strict", 0.05), ("lenient", 0.1)):
    add_speech_task(name, source_of(manifest, share=share, per_shard=4), vocabulary)
  with pytest.raises(UserError, match=rf"1 of 10 records.*:10: audio file.*later.*{BAD_EXAMPLES}"):
    cache_task("strict", registry, quiet=True)
  assert not seqio.TaskRegistry.get("strict").cache_dir
  cache_task("lenient", registry)
  assert "lenient: skipped" in capsys.readouterr().out
  assert seqio.TaskRegistry.get("lenient").get_cached_stats("train")["examples"] == 9
  for name in ("strict", "lenient"):
    (bad,) = map(json.loads, (registry / name / BAD_EXAMPLES).read_text().splitlines())
    assert bad["split"] == "train" and bad["name"] == f"{manifest}:10" and bad["count"] == 1
    assert "later.flac' does not exist" in bad["reason"]
  assert left_out(registry / "lenient") == {"bad": 1}
  # What is mended in between is read again.
  soundfile.write(recordings / "later.flac", np.full(2_000, 0.1), 8_000)
  cache_task("strict", registry, quiet=True)
  assert seqio.TaskRegistry.get("strict").get_cached_stats("train")["examples"] == 10
  assert not (registry / "strict" / BAD_EXAMPLES).read_text()


def test_reading_without_a_cache_names_bad_examples_once_and_keeps_within_the_budget(
  recordings, registry
):
  manifest = write(recordings, [*[record(n) for n in range(9)], record(9, audio="nowhere.flac")])
  for name, share in (("strict", 0.05), ("lenient", 0.1)):
    register_speech_task(name, {"train": manifest}, max_problem_share=share)
  task = seqio.TaskRegistry.get("lenient")
  dataset = task.get_dataset(None, "train", shuffle=False, num_epochs=2, try_in_mem_cache=False)
  assert len(list(dataset.as_numpy_iterator())) == 18
  assert len((registry / "lenient" / BAD_EXAMPLES).read_text().splitlines()) == 1
  strict = seqio.TaskRegistry.get("strict").get_dataset(None, "train", shuffle=False)
  with pytest.raises(Exception, match="1 of 10 records cannot be used"):
    list(strict.as_numpy_iterator())


def test_long_recordings_are_dropped_not_cut(recordings):
  manifest = write(recordings, [record(0, audio="long.flac"), record(1)])
  source = source_of(manifest, max_seconds=0.5)
  assert [example["transcript"] for example in examples(source)] == [b"word 1"]
  assert source.dropped == {"audio longer than 0.5 s": 1} and not source.problems


def test_what_a_cache_lacks_is_said_every_time(recordings, registry, capsys, monkeypatch):
  monkeypatch.setenv("SLM_JAX_CACHE_DIR", str(registry))
  rows = [record(0, audio="long.flac"), record(1), record(2, audio="nowhere.flac")]
  source = {"train": write(recordings, rows)}
  register_speech_task("lacking", source, max_seconds=0.5, max_problem_share=0.5)
  register_speech_task("whole", {"train": write(recordings, [record(1)])})
  seqio.MixtureRegistry.add("both", ["lacking", "whole"], default_rate=1.0)
  for _ in range(2):
    lacking = fill_caches("both", num_processes=1)
    assert lacking == {"lacking": {"audio longer than 0.5 s": 1, "bad": 1}}
    assert "lacking: left out 1 audio longer than 0.5 s, 1 bad (see" in capsys.readouterr().err


def test_changed_manifest_and_settings_change_the_fingerprint(recordings):
  one, two = (write(recordings, [record(0), record(1, text=text)]) for text in ("one", "two"))
  sources = [source_of(one), source_of(two), source_of(one, target="speaker")]
  prints = {source.fingerprint() for source in sources}
  assert len(prints) == 3 and source_of(one).fingerprint() in prints
  one.write_text(json.dumps(record(3)) + "\n" + json.dumps(record(4)) + "\n")
  assert source_of(one).fingerprint() not in prints


def test_a_source_in_another_process_makes_the_same_examples(recordings):
  manifest = write(recordings, [record(n) for n in range(4)])
  source = source_of(manifest, wheres={"train": {"speaker": ("ann",)}})
  copy = pickle.loads(pickle.dumps(source))
  assert examples(copy) == examples(source) and copy.fingerprint() == source.fingerprint()


# --- texts -----------------------------------------------------------------------------------


def test_columns_have_the_names_of_the_data(recordings):
  row = {"path": "0.flac", "n": 7, "translations": {"es": "palabra"}, "who": "ann"}
  columns = Columns.of(
    {"audio": "path", "id": "n", "speaker": "who", "translation": "translations.es"}
  )
  source = source_of(
    write(recordings, [row]),
    columns=columns,
    target="translation",
    target_language="es",
    language="en",
  )
  (example,) = examples(source)
  found = {name: text.decode() for name, text in example.items() if name != "audio"}
  assert found == {
    "id": "7",
    "task": "asr",
    "language": "en",
    "target_language": "es",
    "transcript": "",
    "instruction": "",
    "target": "palabra",
    "voice": "ann",
    "names": "",
  }
  with pytest.raises(ValueError, match="no 'adio' is known; did you mean 'audio'"):
    Columns.of({"adio": "path"})


def test_wordings_are_filled_from_the_record_and_stay_with_it(recordings):
  names = [record(n, id=f"r{n}", context=["Ann", "Bob"]) for n in range(8)]
  lines = [*names, record(8, instruction="Its own."), record(9, context="")]
  wordings = ("Names: {context}.", "In {language}: {context}", "Write {{this}}.")
  source = source_of(write(recordings, lines), instructions=wordings)
  asked = [example["instruction"].decode() for example in examples(source)]
  assert asked == [example["instruction"].decode() for example in examples(source)]
  assert set(asked[:8]) == {"Names: Ann, Bob.", "In en: Ann, Bob", "Write {this}."}
  assert asked[8:] == ["Its own.", "Write {this}."]
  source = source_of(write(recordings, lines[-1:]), instructions=wordings[:1], share=1.0)
  assert not examples(source)
  assert "no instruction fits: ['context']" in source.problems[0].reason


def test_hints_are_names_of_the_text_among_distractors(recordings, tmp_path):
  write_pool(tmp_path / "pool.txt", [f"Hello Name{n}" for n in "abcdefgh"])
  hints = Hints(pool=str(tmp_path / "pool.txt"), distractors=5)
  lines = [record(n, text="Then Marlow met Nameb.") for n in range(10)]
  manifest = write(recordings, lines)
  source = source_of(manifest, instructions=("Hints: {hints}",), hints=hints)
  asked = [e["instruction"].decode().removeprefix("Hints: ").split(", ") for e in examples(source)]
  for words in asked:
    assert len(words) == len(set(words)) == 7 and {"Marlow", "Nameb"} < set(words)
  assert len(set(map(tuple, asked))) > 5
  plain = source_of(manifest, instructions=("Hints: {hints}",))
  assert plain.fingerprint() != source.fingerprint() and "hints" not in plain.describe()["settings"]
  with pytest.raises(ValueError, match="none of the instructions .* has {hints}"):
    RecordSettings(instructions=("Write.",), hints=hints)


def test_biasing_words_come_from_a_column_that_is_named(recordings):
  lines = [record(0, rare=["Mira Voss", "Lilo"]), record(1, rare="Ann | Bob"), record(2)]
  path = write(recordings, lines)
  found = examples(source_of(path, columns=Columns.of({"biasing_words": "rare"})))
  assert [example["names"] for example in found] == [b"Mira Voss|Lilo", b"Ann|Bob", b""]
  assert {example["names"] for example in examples(source_of(path))} == {b""}


@pytest.mark.parametrize("wording", ["Names: {}", "{0}", "{text!r}", "{text:>9}", "open {"])
def test_a_wording_that_is_no_plain_template_is_refused(wording):
  with pytest.raises(ValueError, match="instruction"):
    RecordSettings(instructions=(wording,))


def test_digits_without_their_recordings_name_the_path(tmp_path, import_anew, monkeypatch):
  monkeypatch.setenv("SLM_JAX_SHARED_DATA", str(tmp_path))
  import_anew("digits")
  source = seqio.TaskRegistry.get("digits").source
  with pytest.raises(UserError, match=str(tmp_path / "fsdd" / "manifest.jsonl")):
    source.list_shards("train")
  speakers = {split: set(part.where["speaker"]) for split, part in source.parts.items()}
  assert not speakers["train"] & speakers["validation"]
