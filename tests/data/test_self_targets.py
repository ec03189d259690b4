"""Targets that the frozen LM writes: the audio stays, the answers are the LM's, a kill changes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.cli.main import main
from slm_jax.data.self_targets import CARD, write_self_targets
from slm_jax.data.speech_tasks import register_speech_task
from slm_jax.data.task_examples import SampledSplit
from slm_jax.errors import UserError
from slm_jax.evaluation.text_answers import TextAnswers
from slm_jax.interop import load_language_model
from slm_jax.models.generation_config import GenerationConfig

LANGUAGE_MODEL = Path("slm_jax/assets/mini/language_model").resolve()
SENTENCES = (
  "a dog eats an apple.",
  "two cats sleep in the garden.",
  "der Hund schläft.",
  "the old woman buys three red hats.",
  "",
  "a cat drinks milk.",
  "the boy sees a bird " * 40,
)


class Stop(Exception):
  pass


@pytest.fixture(scope="module")
def language_model():
  return load_language_model(LANGUAGE_MODEL)


@pytest.fixture
def task(registry, tmp_path, monkeypatch):
  """Seven recordings in shards of three, one without a transcript and one with too long a one."""
  monkeypatch.chdir(tmp_path)
  rng, lines = np.random.default_rng(0), []
  for number, text in enumerate(SENTENCES):
    audio = rng.integers(-9000, 9000, 4000 + number).astype(np.int16)
    soundfile.write(tmp_path / f"{number}.wav", audio, 16_000)
    row = {"audio": f"{number}.wav", "id": f"u{number}", "text": text, "translation": "x"}
    lines.append(json.dumps(row | {"language": "en", "speaker": f"s{number}"}) + "\n")
  (tmp_path / "rows.jsonl").write_text("".join(lines))
  task = register_speech_task(
    "spoken",
    {"train": str(tmp_path / "rows.jsonl")},
    instruction=("Translate to German.", "Say it in Spanish."),
    target="translation",
    metrics=("bleu",),
  )
  task.source.examples_per_shard = 3
  return task


def answers(language_model, **decoding):
  config = GenerationConfig(**{"max_new_tokens": 24, **decoding})
  return TextAnswers(language_model, config, batch_size=2, source_length=48)


def examples(task, split="train"):
  return {example.id: example for example in SampledSplit(task, split, 100)}


def files(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_the_result_is_a_task_with_the_same_audio_and_the_answers_of_the_lm(
  task, language_model, tmp_path
):
  card = write_self_targets(task, tmp_path / "out", answers(language_model), {})
  register_speech_task(
    "answered",
    {"train": str(tmp_path / "out/train.jsonl")},
    instruction="",
    target="target",
    metrics=("exact",),
  )
  before, after = examples(task), examples(seqio.TaskRegistry.get("answered"))
  assert set(after) == {"u0", "u1", "u2", "u3", "u5"}
  for name, example in after.items():
    old = before[name]
    np.testing.assert_array_equal(example.audio, old.audio)
    assert (example.instruction, example.transcript) == (old.instruction, old.transcript)
    assert (example.language, example.speaker) == (old.language, old.speaker)
    # The LM by itself, one text at a time and without padding.
    tokenizer = language_model.tokenizer
    source = [*tokenizer.encode(old.transcript), *tokenizer.encode(old.instruction), 1]
    ids = language_model.generate(tokens=np.asarray([source], np.int32), max_new_tokens=24).ids
    assert example.target == tokenizer.decode([int(i) for i in ids[0] if i > 1]).strip()
  assert len({example.target for example in after.values()}) > 3
  found = card["splits"]["train"]
  assert (found["records"], found["examples"]) == (7, 5)
  assert found["skipped"]["no transcript"] == 1
  assert sum(found["skipped"].values()) == 2
  skipped = [json.loads(line) for line in open(tmp_path / "out/skipped.jsonl")]
  assert [line["name"] for line in skipped] == ["u4", "u6"] and "over 48" in skipped[1]["reason"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_interrupted_run_ends_in_the_same_bytes(task, language_model, tmp_path, temperature):
  model = answers(language_model, temperature=temperature)
  write_self_targets(task, tmp_path / "whole", model, {})
  asked = []

  def until_third(pairs, seed):
    asked.append(len(pairs))
    if len(asked) == 2:
      raise Stop
    return model(pairs, seed)

  with pytest.raises(Stop):
    write_self_targets(task, tmp_path / "cut", until_third, {})
  assert not (tmp_path / "cut" / CARD).exists()
  (tmp_path / "cut/audio/train/00001").mkdir(parents=True, exist_ok=True)
  (tmp_path / "cut/audio/train/00001/00009.flac").write_bytes(b"left by a kill")
  again = []
  write_self_targets(task, tmp_path / "cut", lambda *a: again.append(a) or model(*a), {})
  assert len(again) == 2, "the first of three shards is kept"
  assert files(tmp_path / "cut") == files(tmp_path / "whole")
  third = write_self_targets(task, tmp_path / "cut", until_third, {})
  assert third == json.loads((tmp_path / "cut" / CARD).read_text())


def test_other_settings_and_foreign_folders_are_refused(task, language_model, tmp_path):
  model = answers(language_model)
  write_self_targets(task, tmp_path / "out", model, {"lm": "a"})
  with pytest.raises(UserError, match="lm: a there, b now"):
    write_self_targets(task, tmp_path / "out", model, {"lm": "b"})
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/thesis.txt").touch()
  with pytest.raises(UserError, match="not empty"):
    write_self_targets(task, tmp_path / "mine", model, {})
  assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_answers_that_are_none_are_named(language_model):
  cut = answers(language_model, max_new_tokens=2)([("a dog eats an apple.", "Say it again.")])
  assert cut[0].reason == "answer cut at 2 tokens"


def test_sources_are_ordered_as_the_model_orders_speech_and_instruction(language_model):
  pieces = language_model.tokenizer.encode
  config = GenerationConfig(max_new_tokens=4)
  for first in (True, False):
    asked = TextAnswers(
      language_model, config, batch_size=2, source_length=48, speech_first=first
    ).source_ids("a dog", "Translate.")
    spoken, instruction = pieces("a dog"), [*pieces("Translate."), 1]
    assert asked == (spoken + instruction if first else instruction + spoken)


def test_the_command_writes_the_card_and_says_where(task, tmp_path, capsys, monkeypatch):
  (tmp_path / "spoken_module.py").write_text("")
  monkeypatch.syspath_prepend(str(tmp_path))
  command = [
    "tasks", "self_targets", "spoken", "--module=spoken_module", f"--output={tmp_path / 'out'}",
    f"--language_model={LANGUAGE_MODEL}", "--source_length=48", "--max_new_tokens=24", "--batch_size=2",
  ]  # fmt: skip
  assert main(command) == 0
  printed = capsys.readouterr().out.splitlines()
  assert printed[0].startswith("train: 5 of 7 records") and printed[-1] == str(tmp_path / "out")
  card = json.loads((tmp_path / "out" / CARD).read_text())["made_from"]
  assert len(card["language_model"]["sha256"]) == 64 and card["decoding"]["max_new_tokens"] == 24
  shutil.rmtree(tmp_path / "out")
  for wrong, said in (
    ("--split=test", "spoken has train"),
    ("--num_beams=0", "num_beams=0"),
    ("--language_model=nowhere", "nowhere"),
    ("--batch_size=0", "batch_size=0"),
  ):
    assert main([*command, wrong]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and said in errors[0]
    assert not (tmp_path / "out").exists()
