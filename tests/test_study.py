"""The miniature study: every adapter is another, every list is what its condition says, scores are of what is there."""

import json

import numpy as np
import pytest

from benchmarks.study import conditions, report, scoring
from benchmarks.study.runs import EXPERIMENT, RUNS
from slm_jax import config
from slm_jax.data.eval_examples import SpeechExample
from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.training.loop import describe
from tasks import mini_study


def built(run):
  bindings = {"MODEL_DIR": "x", **run.bindings}
  texts = [f"{name}={value!r}" for name, value in bindings.items()]
  config.load([EXPERIMENT, *run.gin_files], texts, [])
  return describe(config.build("train"))


def test_every_run_is_another_and_changes_what_it_says():
  described = [built(run) for run in RUNS]
  assert len({json.dumps(one, sort_keys=True) for one in described}) == len(RUNS)
  assert len({run.name for run in RUNS}) == len(RUNS)
  headline = described[0]
  changed = {
    run.name: {name for name in one if one[name] != headline.get(name)}
    for run, one in zip(RUNS, described, strict=True)
  }
  assert changed["seed0"] == set()
  assert changed["depth4"] == {"model.adapter.num_layers"}
  assert changed["text_first"] == {"model.speech_first"}
  assert changed["lora"] == {"model.lora_rank", "model.trainable"}


class LengthSynthesizer:
  """As many samples as the text has letters, times 100, at 16 kHz."""

  def synthesize(self, text, language, voice, seed, *, vary):
    return np.ones(100 * len(text), np.float32), 16_000


def test_deaf_speech_is_another_sentence_of_the_same_language():
  deaf = mini_study.DeafSpeech("repeat", {"train": 8}, seed=1, synthesizer=LengthSynthesizer)
  honest = MiniSpeechSource("repeat", {"train": 12}, seed=1, synthesizer=LengthSynthesizer)
  found = list(deaf.make_examples("train", 0, 8))
  others = list(honest.make_examples("train", 0, 12))
  assert len(found) == 8
  for index, example in enumerate(found):
    assert {**example, "audio": b""} == {**others[index], "audio": b""}
    said = others[index + 4]
    assert example["audio"] == said["audio"] and example["language"] == said["language"]
    assert example["transcript"] != said["transcript"]


def spoken(index):
  return SpeechExample(
    id=f"biasing-validation-{index:06d}",
    task="biasing",
    audio=np.zeros(1, np.int16),
    instruction="Say this again. Names may be Karina, Belto.",
    target="Karina sees Belto.",
    transcript="Karina sees Belto.",
    language="en",
    target_language="en",
    voice="",
    names=("Karina", "Belto"),
  )


@pytest.mark.parametrize(("condition", "count", "listed"), list(conditions.names_conditions()))
def test_lists_hold_what_the_condition_says(condition, count, listed):
  for index, example in enumerate(conditions.with_list([spoken(0), spoken(1)], count, listed)):
    asked, _, names = example.instruction.partition(" Names may be ")
    names = names.removesuffix(".").split(", ") if names else []
    assert asked == "Say this again." and example.id == spoken(index).id
    assert (set(example.names) <= set(names)) is listed
    assert len(set(names)) == len(names) == count + 2 * listed


def write(folder, condition, predictions, names=()):
  folder.mkdir(parents=True, exist_ok=True)
  line = {"target": "Karina sees Belto.", "names": list(names)}
  texts = [json.dumps({**line, "prediction": text}) for text in predictions]
  (folder / f"slm-{condition}.jsonl").write_text("\n".join(texts))


def test_seeds_are_scored_together_and_a_missing_one_is_not_passed_over(tmp_path):
  write(tmp_path / "a", "question", ["Karina sees Belto.", "no"])
  write(tmp_path / "b", "question", ["no", "no"])
  both = scoring.measured([tmp_path / "a", tmp_path / "b"], "slm", "question", "exact")
  assert both is not None and (both.value, both.values, both.count) == (25.0, (50.0, 0.0), 2)
  assert both.low < 25 < both.high
  assert scoring.measured([tmp_path / "a", tmp_path / "c"], "slm", "question", "exact") is None


def test_report_shows_what_has_been_measured_so_far(tmp_path):
  for run in RUNS[:3]:
    write(tmp_path / run.name / "texts", "question", ["Karina sees Belto.", "no"])
    write(
      tmp_path / run.name / "texts", "names_none", ["Garina sees Belto."] * 2, ("Karina", "Belto")
    )
  write(tmp_path / "depth0" / "texts", "question", ["no", "no"])
  text = report.write_report(tmp_path).read_text()
  assert "| question exact | 50.0 (0.0–100.0) | 50.0 / 50.0 / 50.0 |" in text
  assert "| names_none | 50.0 (50.0–50.0) |" in text
  assert "| 0 layers |" in text and "reduction" not in text
  assert (tmp_path / "study_headline.png").is_file()
