"""Recorded speech from a manifest: good records come through, bad ones are named, counted, bounded."""

import importlib
import json
import sys

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.data.manifest_source import ManifestSource
from slm_jax.data.seqio_cache import cache_task
from slm_jax.data.speech_tasks import add_speech_task
from slm_jax.errors import UserError

ALL = {"train": {}}


def record(number, **changes):
  fields = {"audio": f"{number}.flac", "text": f"word {number}", "language": "en"}
  return {**fields, "speaker": ("ann", "bob")[number % 2], **changes}


@pytest.fixture
def folder(tmp_path):
  """Ten recordings of 0.25 s at 8 kHz; `write` makes a manifest of records and raw lines."""
  time = np.arange(2_000) / 8_000
  for number in range(10):
    tone = 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * time)
    soundfile.write(tmp_path / f"{number}.flac", tone, 8_000)
  return tmp_path


def write(folder, lines):
  path = folder / f"manifest_{len(list(folder.glob('*.jsonl')))}.jsonl"
  raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
  path.write_bytes(b"\n".join(raw) + b"\n")
  return path


def examples(source, split="train"):
  return list(source.make_examples(split, 0, source.num_input_examples(split)))


def test_records_become_examples_at_16_khz(folder):
  manifest = write(folder, [record(n) for n in range(10)])
  source = ManifestSource(manifest, ALL, max_samples=8_000, task="repeat", instruction="Repeat.")
  made = examples(source)
  assert len(made) == 10 and not source.problems
  for number, example in enumerate(made):
    audio = np.frombuffer(example["audio"], "<i2")
    assert len(audio) == pytest.approx(4_000, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(audio))) * 16_000 / len(audio)
    assert peak == pytest.approx(200 + 50 * number, abs=4)
    assert example["transcript"] == example["target"] == f"word {number}".encode()
    assert example["instruction"] == b"Repeat." and example["voice"] in (b"ann", b"bob")


def test_splits_select_by_field(folder):
  manifest = write(folder, [record(n) for n in range(10)])
  splits = {"train": {"speaker": ("ann",)}, "validation": {"speaker": ("bob",)}}
  source = ManifestSource(manifest, splits, max_samples=8_000)
  speakers = {s: {example["voice"] for example in examples(source, s)} for s in splits}
  assert speakers == {"train": {b"ann"}, "validation": {b"bob"}}
  assert source.num_input_examples("train") == 5


BAD = {
  "not UTF-8": b'{"audio": "0.flac", "text": "\xff", "language": "en"}',
  "not JSON": b'{"audio": "0.flac", ',
  "expected a JSON object, found list": b"[1]",
  "field 'text' is missing": record(1, text=""),
  "field 'speaker' is int": record(2, speaker=3),
  "does not exist": record(3, audio="nowhere.flac"),
  "is empty": record(4, audio="empty.wav"),
  "is a text file": record(5, audio="text.wav"),
}


def test_every_bad_record_is_named_with_its_line(folder):
  (folder / "empty.wav").touch()
  (folder / "text.wav").write_text("this is not audio")
  manifest = write(folder, [record(0), *BAD.values(), record(9)])
  source = ManifestSource(manifest, ALL, max_samples=8_000, max_problem_share=0.9)
  assert [example["transcript"] for example in examples(source)] == [b"word 0", b"word 9"]
  assert len(source.problems) == len(BAD)
  for line, (reason, problem) in enumerate(zip(BAD, source.problems, strict=True), start=2):
    assert problem.startswith(f"{manifest}:{line}: ") and reason in problem


def test_too_many_bad_lines_stop_before_any_audio_is_read(folder):
  manifest = write(folder, [*[record(n) for n in range(9)], BAD["not JSON"]])
  with pytest.raises(UserError, match=r"1 of 10 lines.*at most 1\.00%.*:10: not JSON"):
    ManifestSource(manifest, ALL, max_samples=8_000).list_shards("train")
  assert ManifestSource(manifest, ALL, max_samples=8_000, max_problem_share=0.1).list_shards(
    "train"
  )


def test_cache_keeps_within_the_budget_of_bad_audio(folder, registry, vocabulary, capsys):
  manifest = write(folder, [*[record(n) for n in range(9)], record(9, audio="nowhere.flac")])
  for name, share in (("strict", 0.05), ("lenient", 0.1)):
    source = ManifestSource(
      manifest, ALL, max_samples=8_000, max_problem_share=share, examples_per_shard=4
    )
    add_speech_task(name, source, vocabulary)
  with pytest.raises(UserError, match=r"1 of 10 records.*:10: audio file.*nowhere"):
    cache_task("strict", registry, quiet=True)
  assert not seqio.TaskRegistry.get("strict").cache_dir
  cache_task("lenient", registry)
  assert "lenient: skipped" in capsys.readouterr().out
  assert seqio.TaskRegistry.get("lenient").get_cached_stats("train")["examples"] == 9


def test_long_recordings_are_dropped_not_cut(folder):
  soundfile.write(folder / "0.flac", np.full(8_000, 0.1), 8_000)
  source = ManifestSource(write(folder, [record(0), record(1)]), ALL, max_samples=8_000)
  assert [example["transcript"] for example in examples(source)] == [b"word 1"]
  assert source.dropped == {"audio longer than 8000 samples": 1} and not source.problems


def test_changed_manifest_changes_the_fingerprint(folder):
  prints = {
    ManifestSource(
      write(folder, [record(0), record(1, text=text)]), ALL, max_samples=1
    ).fingerprint()
    for text in ("one", "two")
  }
  assert len(prints) == 2


def test_digits_without_their_recordings_name_the_path(tmp_path, registry, monkeypatch):
  monkeypatch.setenv("SLM_JAX_SHARED_DATA", str(tmp_path))
  for module in ("tasks.digits", "tasks.mini"):
    monkeypatch.delitem(sys.modules, module, raising=False)
  monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", {})
  monkeypatch.setattr(seqio.MixtureRegistry, "_REGISTRY", {})
  importlib.import_module("tasks.digits")
  source = seqio.TaskRegistry.get("digits").source
  with pytest.raises(UserError, match=str(tmp_path / "fsdd" / "manifest.jsonl")):
    source.list_shards("train")
  speakers = {split: set(chosen["speaker"]) for split, chosen in source.selections.items()}
  assert not speakers["train"] & speakers["validation"]
