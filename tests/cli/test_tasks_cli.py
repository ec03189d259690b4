"""`slm_jax tasks`: what it shows of a task, what it finds wrong, and what it says of misspelt names."""

import importlib
import json

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.audio.files import read_audio
from slm_jax.cli.main import main

MODULE = """
from slm_jax.data.speech_tasks import register_speech_task

for name in ("good", "bad"):
  register_speech_task(
    f"cli_{name}",
    {"train": f"{name}.jsonl", "validation": f"{name}_validation.jsonl"},
    instruction=("Write it down.", "Transcribe."),
    max_seconds=1.5,
  )
"""
RATE = 16_000


def speech(seed, seconds=0.8):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 2_000, int(RATE * seconds)).astype(np.int16)


def row(name, **changes):
  return {"audio": f"{name}.wav", "id": name, "text": "open the door", "language": "en", **changes}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A working directory whose tasks/ registers a good task and one with every fault."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("SLM_JAX_CACHE_DIR", str(tmp_path / "cache"))
  for kind in (seqio.TaskRegistry, seqio.MixtureRegistry):
    monkeypatch.setattr(kind, "_REGISTRY", {})
  before = list(seqio.utils.get_global_cache_dirs())
  # Not `tasks`: that module is the project's own, and imported already.
  (tmp_path / "cli_tasks_module.py").write_text(MODULE)
  monkeypatch.delitem(__import__("sys").modules, "cli_tasks_module", raising=False)
  for number in range(12):
    soundfile.write(tmp_path / f"a{number}.wav", speech(number), RATE)
  quiet = (speech(9) * 0.012).astype(np.int16)  # -63 dBFS, as some people's recordings are
  soundfile.write(tmp_path / "a9.wav", quiet, RATE)
  good = [row(f"a{number}") for number in range(10)]
  faults = {
    "silent": np.zeros(RATE // 2, np.int16),
    "clipped": np.where(speech(50) > 0, 32_767, -32_768).astype(np.int16),
    "long": speech(51, 2.0),
    "fast": speech(52, 0.1),
  }
  for name, audio in faults.items():
    soundfile.write(tmp_path / f"{name}.wav", audio, RATE)
  bad = [*good[:4], *(row(name) for name in faults), row("a4", text="Ж ja"), row("missing")]
  rows = {
    "good": good,
    "good_validation": [row("a10"), row("a11")],
    "bad": bad,
    "bad_validation": [row("a1"), row("a11")],
  }
  for name, lines in rows.items():
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / f"{name}.jsonl").write_text(text)
  yield tmp_path
  seqio.set_global_cache_dirs(before)


def tasks(*arguments):
  return main(["tasks", *arguments, "--module=cli_tasks_module"])


def test_show_writes_what_training_would_hear(checkout, capsys):
  flags = ("--split=train", "--index=3", "--num_examples=2", "--json", "--output=shown")
  assert tasks("show", "cli_good", *flags) == 0
  first, second = map(json.loads, capsys.readouterr().out.splitlines())
  assert (first["id"], second["id"]) == ("a3", "a4") and first["index"] == 3
  assert first["target"] == first["transcript"] == "open the door"
  assert first["instruction"] in ("Write it down.", "Transcribe.")
  assert first["lengths"] == {
    "audio": len(speech(3)),
    "inputs": len(first["inputs"]),
    "targets": len(first["targets"]),
  }
  assert "".join(first["targets_pieces"]).replace("▁", " ").strip() == "open the door</s>"
  np.testing.assert_array_equal(read_audio(first["audio_file"]), speech(3))
  picture = (checkout / first["spectrogram"]).read_bytes()
  assert picture.startswith(b"\x89PNG") and len(picture) > 5_000
  assert not (checkout / "cache" / "cli_good").exists()  # no cache is filled for a look


def test_check_has_nothing_against_good_data(checkout, capsys):
  lengths = ("--task_feature_lengths", '{"audio": 16000, "inputs": 8, "targets": 16}')
  assert tasks("check", "cli_good", "--json", *lengths) == 0
  (report,) = json.loads(capsys.readouterr().out)
  train = report["splits"]["train"]
  assert report["ok"] and not report["findings"]
  assert train["examples"] == train["candidates"] == 10 and train["bad"] == []
  assert train["seconds"]["median"] == pytest.approx(0.8)
  assert train["hours"] == {"en": pytest.approx(10 * 0.8 / 3600, abs=1e-4)}
  assert train["padding"]["audio"] == pytest.approx(1 - 0.8)
  targets = train["lengths"]["targets"]
  assert train["padding"]["targets"] == pytest.approx(1 - targets["total"] / 160, abs=1e-3)
  assert tasks("check", "cli_good") == 0
  assert "nothing that would hurt training" in capsys.readouterr().out


def test_check_finds_every_fault_and_exits_2(checkout, capsys):
  assert tasks("check", "cli_bad", "--json", "--output=checked") == 2
  (report,) = json.loads(capsys.readouterr().out)
  assert not report["ok"]
  found = {f["what"]: f for f in report["findings"] if f["split"] == "train"}
  assert {what: f["names"] for what, f in found.items() if what not in ("bad records",)} == {
    "silent": ["silent"],
    "clipped": ["clipped"],
    "text and audio do not fit": ["fast"],
    "characters out of vocabulary": ["a4"],
    "left out: audio longer than 1.5 s": [],
  }
  assert all(finding["level"] == "error" for finding in found.values())
  assert "missing.wav' does not exist" in found["bad records"]["names"][0]
  assert report["splits"]["train"]["unknown_characters"] == {"Ж": 1}
  (twice,) = (f for f in report["findings"] if f["split"] == "validation")
  assert twice["what"] == "duplicates between splits (also in train)" and twice["names"] == ["a1"]
  (line,) = (checkout / "checked" / "bad_examples.jsonl").read_text().splitlines()
  assert json.loads(line)["name"] == "bad.jsonl:10"
  assert json.loads((checkout / "checked" / "report.json").read_text()) == [report]
  assert tasks("check", "cli_bad") == 2
  text = capsys.readouterr().out
  assert "ERROR train: silent: 1 of 8 (silent)" in text and "would hurt training" in text


def test_examples_longer_than_declared_are_found_and_buckets_save_padding(checkout, capsys):
  def padding(*lengths):
    flags = [part for length in lengths for part in ("--task_feature_lengths", json.dumps(length))]
    status = tasks("check", "cli_good", "--json", *flags)
    (report,) = json.loads(capsys.readouterr().out)
    return status, report

  small, large = {"audio": 12_900, "targets": 16}, {"audio": 32_000, "targets": 64}
  assert padding(large)[1]["splits"]["train"]["padding"]["audio"] == pytest.approx(0.6)
  assert padding(small, large)[1]["splits"]["train"]["padding"]["audio"] < 0.01
  status, report = padding({"audio": 12_000})
  assert status == 2 and "over-long" in {finding["what"] for finding in report["findings"]}
  assert report["splits"]["train"]["padding"] == {"audio": None}
  assert tasks("check", "cli_good", "--task_feature_lengths", '{"sound": 3}') == 2
  assert "features ['audio', 'inputs', 'targets']" in capsys.readouterr().err


def test_buckets_are_suggested_as_gin(checkout, capsys):
  longest = ("--task_feature_lengths", '{"audio": 32000, "inputs": 16, "targets": 64}')
  assert tasks("check", "cli_good", "--suggest_buckets=2", *longest) == 0
  text = capsys.readouterr().out
  assert "DatasetConfig.length_buckets = (\n    {'audio': 12800, " in text
  assert "0.0%" in text and "these 2 shapes" in text
  shared = ("--examples_per_lm_row=4", "--lm_positions_per_second=10")
  assert tasks("check", "cli_good", "--suggest_buckets=2", *longest, *shared) == 0
  text = capsys.readouterr().out
  assert (
    "DatasetConfig.examples_per_lm_row = 4\nDatasetConfig.length_buckets = (\n    {'audio'" in text
  )
  assert "'lm_inputs'" in text
  assert tasks("check", "cli_good", "--suggest_buckets=2") == 2
  assert "--suggest_buckets needs --task_feature_lengths" in capsys.readouterr().err


def test_misspelt_names_list_near_misses_and_their_module(checkout, capsys):
  def error(*arguments):
    assert main(["tasks", *arguments]) == 2
    return capsys.readouterr().err.strip().split("\n")[-1]

  assert "did you mean cli_good (cli_tasks_module)" in error(
    "show", "cli_goood", "--module=cli_tasks_module"
  )
  (checkout / "tasks").mkdir()
  (checkout / "tasks" / "own.py").touch()
  assert "did you mean tasks.own?" in error("check", "x", "--module=tasks.onw")
  assert "did you mean cli_tasks_module?" in error("check", "x", "--module=cli_task_module")
  assert "--module" in error("show", "cli_good")
  assert "no example of split train" in error(
    "show", "cli_good", "--split=train", "--index=99", "--module=cli_tasks_module"
  )
  assert "cli_good has train, validation" in error(
    "show", "cli_good", "--split=dev", "--module=cli_tasks_module"
  )
  own = ("cli_good", "--module=cli_tasks_module")
  assert "--index=-1 must be at least 0" in error("show", *own, "--index=-1")
  for command in ("show", "check"):
    assert "--output=a0.wav cannot be made a folder" in error(command, *own, "--output=a0.wav")


def test_a_module_that_fails_is_named_with_its_line(checkout, capsys):
  call = 'register_speech_task("x", "m.jsonl", metrics=["war"])'
  faults = {
    f"from slm_jax.data.speech_tasks import register_speech_task\n\n{call}\n": (
      "failing.py:3: ValueError: metrics=('war',): 'war' is none of wer"
    ),
    "import no_such_package\n": "failing.py:1: ModuleNotFoundError: No module named 'no_such_package'",
    "x = (\n": "'(' was never closed (failing.py, line 1)",
  }
  for text, says in faults.items():
    (checkout / "failing.py").write_text(text)
    importlib.invalidate_caches()
    assert main(["tasks", "show", "x", "--module=failing"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "module failing fails at" in line and says in line


def test_list_names_tasks_and_their_caches(checkout, capsys):
  assert tasks("list") == 0
  assert "cli_good             task, splits train, validation; cache: not made yet" in (
    capsys.readouterr().out
  )
