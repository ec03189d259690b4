"""SeqIO's own pipeline of many workers makes the caches that training reads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.data.seqio_cache import cache_task

ROWS = 7
MODULE = """
from slm_jax.data.speech_tasks import register_speech_task

register_speech_task(
  "beam_asr",
  {"train": "rows.jsonl"},
  instruction="Transcribe the speech.",
  vocabulary="VOCABULARY",
  max_problem_share=SHARE,
)
"""


@pytest.fixture
def checkout(tmp_path, tiny_tokenizer):
  rng, lines = np.random.default_rng(0), []
  for row in range(ROWS):
    audio = rng.integers(-3000, 3000, 8000 + 100 * row).astype(np.int16)
    soundfile.write(tmp_path / f"{row}.wav", audio, 16_000)
    lines.append(f'{{"audio": "{row}.wav", "text": "{"abdei"[row % 5]}"}}')
  lines.append('{"audio": "gone.wav", "text": "a"}')
  (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")

  def module(share: float) -> Path:
    text = MODULE.replace("VOCABULARY", str(tiny_tokenizer)).replace("SHARE", str(share))
    (tmp_path / "beam_tasks.py").write_text(text)
    return tmp_path

  return module


def run(folder: Path) -> subprocess.CompletedProcess:
  script = Path(sys.executable).parent / "seqio_cache_tasks"
  flags = ["--module_import=beam_tasks", "--tasks=beam_asr", "--output_cache_dir=cache"]
  flags += ["--pipeline_options=--runner=DirectRunner,--direct_num_workers=2"]
  environment = os.environ | {"PYTHONPATH": f"{folder}:{Path.cwd()}", "TF_CPP_MIN_LOG_LEVEL": "3"}
  return subprocess.run(
    [sys.executable, script, *flags], cwd=folder, env=environment, capture_output=True, text=True
  )


def test_the_examples_are_those_of_the_ordinary_cache(checkout, registry, monkeypatch):
  folder = checkout(0.2)
  done = run(folder)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "skipped" in done.stderr and "gone.wav" in done.stderr
  assert (folder / "cache" / "beam_asr" / "COMPLETED").exists()
  monkeypatch.chdir(folder)
  exec((folder / "beam_tasks.py").read_text(), {})
  task = seqio.TaskRegistry.get("beam_asr")

  def read(parent: Path) -> list[tuple]:
    seqio.set_global_cache_dirs([str(parent)])
    monkeypatch.setattr(task, "_cache_dir", None)
    assert task.cache_dir == str(parent / "beam_asr")
    dataset = task.get_dataset(None, "train", use_cached=True, shuffle=False)
    return sorted(
      (row["id"], row["audio"].tobytes(), row["inputs"].tobytes(), row["targets"].tobytes())
      for row in dataset.as_numpy_iterator()
    )

  by_beam = read(folder / "cache")
  cache_task("beam_asr", folder / "ours", quiet=True)
  assert len(by_beam) == ROWS and by_beam == read(folder / "ours")


def test_too_many_bad_examples_end_the_pipeline(checkout):
  folder = checkout(0.01)
  done = run(folder)
  assert done.returncode != 0
  assert "gone.wav" in done.stderr and not list(folder.glob("cache/*/COMPLETED"))
