"""Data sets that come as text and are spoken: Alpaca's inputs, SQuAD's questions."""

import json

import numpy as np
import pytest

from slm_jax.audio.files import decode_audio
from slm_jax.data import voices
from slm_jax.data.datasets.spoken_alpaca import SpokenAlpaca
from slm_jax.data.datasets.spoken_squad import SpokenSquad
from slm_jax.errors import UserError


class Beeper:
  """Speaks 10 ms for each character, at espeak-ng's rate, the louder the later the voice."""

  said: list[tuple[str, str, bool]] = []

  def synthesize(self, text, language, voice, seed, *, vary=False):
    self.said.append((text, voice, vary))
    return np.full(round(220.5 * len(text)), 1_000, np.int16), 22_050


@pytest.fixture(autouse=True)
def beeper(monkeypatch):
  monkeypatch.setattr(Beeper, "said", [])
  for builder in (SpokenAlpaca, SpokenSquad):
    monkeypatch.setattr(builder, "synthesizer", Beeper)
  return Beeper


def row(text, instruction="Give the\nplural.", output=" mice \n"):
  return {"instruction": instruction, "input": text, "output": output}


def test_alpaca_speaks_the_input_and_keeps_the_rest_as_text(archives, prepare, beeper):
  inputs = [f"the mouse number {n}" for n in range(100)]
  left = ["", "<noinput>", "No Input", "x" * 500, "???"]
  archives.write(
    "alpaca_data.json", json.dumps([*map(row, inputs), *map(row, left), row("a", "b", "")])
  )
  prepared = prepare(SpokenAlpaca)
  train, validation = prepared.split("train"), prepared.split("validation")
  assert len(train) + len(validation) == 100 and len(validation) == 1
  for key, record in {**train, **validation}.items():
    assert record["text"] == inputs[int(key.removeprefix("alpaca-"))]
    assert (record["instruction"], record["answer"]) == ("Give the\nplural.", "mice")
  record = next(iter(train.values()))
  assert len(decode_audio(record["audio"], "x")) == pytest.approx(160 * len(record["text"]), abs=9)
  assert {r["speaker"] for r in validation.values()} <= set(voices.held_out_variants())
  assert not {r["speaker"] for r in train.values()} & set(voices.held_out_variants())
  counts = prepared.left_out["train"]
  counts = {k: counts.get(k, 0) + prepared.left_out["validation"].get(k, 0) for k in counts}
  assert counts["no input"] == 3 and sum(counts.values()) == 6
  assert sorted(text for text, _, _ in beeper.said) == sorted(inputs)


def test_equal_inputs_are_in_one_split(archives, prepare):
  rows = [row(f"input {n % 50}", f"Instruction {n}.") for n in range(100)]
  archives.write("alpaca_data.json", json.dumps(rows))
  prepared = prepare(SpokenAlpaca)
  texts = [{r["text"] for r in prepared.split(s).values()} for s in ("train", "validation")]
  assert not texts[0] & texts[1] and len(texts[0] | texts[1]) == 50


@pytest.mark.parametrize("content", ["{", "[1]", '[{"input": "a"}]', '{"a": 1}'])
def test_another_file_than_alpaca_is_refused(archives, prepare, content):
  archives.write("alpaca_data.json", content)
  with pytest.raises(UserError, match="alpaca_data.json is not a JSON list of objects"):
    prepare(SpokenAlpaca)


def test_alpaca_is_not_downloaded_without_consent(archives, prepare):
  with pytest.raises(UserError, match="The licence forbids commercial use"):
    prepare(SpokenAlpaca)


def squad(count, answers=True):
  questions = [
    {
      "id": f"56be{n}",
      "question": f" Who is  number {n}? ",
      "answers": [{"text": f"Ann {n}", "answer_start": 0}, {"text": "Bob"}] if answers else [],
    }
    for n in range(count)
  ]
  paragraphs = [{"context": "Ann\nand Bob.", "qas": questions}]
  return json.dumps({"version": "1.1", "data": [{"title": "A", "paragraphs": paragraphs}]})


def test_squad_questions_are_spoken(archives, prepare, beeper):
  archives.write("train-v1.1.json", squad(3))
  archives.write("dev-v1.1.json", squad(2, answers=False))
  prepared = prepare(SpokenSquad)
  record = prepared.split("train")["56be1"]
  assert (record["text"], record["context"]) == ("Who is number 1?", "Ann and Bob.")
  assert record["answer"] == "Ann 1"
  assert {r["answer"] for r in prepared.split("validation").values()} == {"unanswerable"}
  assert len(beeper.said) == 5


@pytest.mark.parametrize("packed", [True, False])
def test_squad_with_recorded_questions(archives, prepare, beeper, packed):
  audio = archives.audio(suffix="wav")
  for split, count in (("train-v1.1", 3), ("dev-v1.1", 2)):
    archives.write(f"{split}.json", squad(count))
    files = {f"{split}/56be{n}.wav": audio for n in range(count)}
    if packed:
      archives.pack(f"{split}.tar.gz", files)
    else:
      for name, content in files.items():
        archives.write(name, content)
  prepared = prepare(SpokenSquad)
  assert {r["audio"] for r in prepared.split("train").values()} == {audio}
  assert len(prepared.split("train")) == 3 and not beeper.said


def test_another_file_than_squad_is_refused(archives, prepare):
  archives.write("train-v1.1.json", '{"data": [{"paragraphs": [{}]}]}')
  with pytest.raises(UserError, match="has not SQuAD's layout"):
    prepare(SpokenSquad)
