"""The four systems, their scores, and the files an evaluation writes."""

import dataclasses
import json

import numpy as np
import pytest

from slm_jax.evaluation import runner, writer
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.generation import GenerationSettings
from slm_jax.evaluation.task_scores import KIND_METRICS
from tests.fake_speech_model import FakeSpeechModel, speak, spell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  id: str
  task: str
  audio: np.ndarray
  transcript: str
  instruction: str
  target: str
  language: str = "en"
  target_language: str = ""
  voice: str = "f1"


def _examples(task: str, count: int) -> list[Example]:
  examples = []
  for i in range(count):
    words = [i + 1, i + 2, i + 3, i + 4, i + 5]
    text = spell(words)
    translate = task == "translate"
    examples.append(
      Example(
        id=f"{task}-{i}",
        task=task,
        audio=speak(words),
        transcript=text,
        instruction=":translate" if translate else ":repeat",
        target=text.upper() if translate else text,
        language="en" if i % 2 else "de",
        target_language="fr" if translate else "",
      )
    )
  return examples


SETTINGS = GenerationSettings(batch_size=3, max_new_tokens=64)


@pytest.fixture(scope="module")
def result():
  examples = _examples("repeat", 7) + _examples("translate", 4) + _examples("question", 5)
  return runner.evaluate(FakeSpeechModel(), examples, SETTINGS)


def test_every_task_is_scored_by_its_kind(result):
  assert [(t.task, t.kind) for t in result.tasks] == [
    ("repeat", "transcription"),
    ("translate", "translation"),
    ("question", "answer"),
  ]
  for task in result.tasks:
    for scores in task.scores.values():
      assert tuple(scores) == KIND_METRICS[task.kind]


def test_a_model_that_hears_perfectly_is_perfect_and_its_ctc_is_not(result):
  repeat = result.tasks[0]
  assert repeat.scores["slm"]["wer"].value == 0.0
  assert repeat.scores["slm"]["wer"].per_language == {"de": 0.0, "en": 0.0}
  assert repeat.scores["ctc"]["wer"].value == pytest.approx(20.0)  # drops one word of five
  translate = result.tasks[1]
  assert set(translate.scores) == {"slm", "cascade", "oracle", "shuffled", "silenced"}
  assert translate.scores["slm"]["bleu"].value == pytest.approx(100.0)
  assert translate.scores["oracle"]["bleu"].value == pytest.approx(100.0)
  assert translate.scores["slm"]["bleu"].per_language == {"fr": pytest.approx(100.0)}


def test_a_cascade_reads_what_the_encoder_heard(result):
  repeat, translate = result.tasks[:2]
  assert [p.texts["cascade"] for p in repeat.predictions] == [
    p.texts["ctc"] for p in repeat.predictions
  ]
  # Not scored as a system of its own where something else is asked for, but read all the same.
  assert "ctc" not in translate.scores
  for prediction in translate.predictions:
    assert prediction.texts["cascade"] == " ".join(prediction.target.split()[1:])


def test_silence_makes_a_listener_silent_and_a_guesser_insert(result):
  for task in result.tasks:
    assert task.rates["silenced"]["inserted"].value == 0.0
  deaf = runner.evaluate(FakeSpeechModel(listens=False), _examples("repeat", 4), SETTINGS)
  assert deaf.tasks[0].rates["silenced"]["inserted"].value == 100.0


def test_systems_can_be_chosen():
  model = FakeSpeechModel()
  task = runner.evaluate(model, _examples("repeat", 4), SETTINGS, systems=("cascade", "slm")).tasks[
    0
  ]
  assert tuple(task.scores) == ("slm", "cascade")
  assert task.agreement == {} and task.predictions[0].shuffled_with is None
  for systems, says in ((("slm", "cascada"), "cascada"), (("oracle",), "must name slm")):
    with pytest.raises(ValueError, match=says):
      runner.evaluate(model, _examples("repeat", 4), SETTINGS, systems=systems)


def test_agreement_compares_with_the_oracles_texts_not_the_targets(result):
  assert {m: s.value for m, s in result.tasks[0].agreement.items()} == {
    "exact": 100.0,
    "wer": 0.0,
    "chrf": pytest.approx(100.0),
  }
  examples = [dataclasses.replace(e, target="other") for e in _examples("question", 3)]
  task = runner.evaluate(FakeSpeechModel(), examples, SETTINGS).tasks[0]
  assert task.scores["slm"]["exact"].value == 0.0
  assert task.agreement["exact"].value == 100.0


def test_every_score_has_an_interval_around_it_if_asked():
  examples = _examples("repeat", 7) + _examples("translate", 4)
  for task in runner.evaluate(
    FakeSpeechModel(), examples, SETTINGS, resampling=Resampling(resamples=50)
  ).tasks:
    tables = [*task.scores.values(), *task.rates.values(), task.agreement]
    for score in (score for table in tables for score in table.values()):
      assert score.interval is not None
      assert score.interval[0] - 1e-9 <= score.value <= score.interval[1] + 1e-9
      assert score.language_intervals.keys() == score.per_language.keys()


def test_names_of_examples_give_biased_error_rates():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Named(Example):
    names: tuple[str, ...]

  examples = [
    Named(**vars(e), names=(e.transcript.split()[0], "unsaid")) for e in _examples("named", 4)
  ]
  kinds = {"named": "biasing"}
  task = runner.evaluate(FakeSpeechModel(), examples, SETTINGS, kinds=kinds).tasks[0]
  assert tuple(task.scores["slm"]) == ("wer", "b_wer", "u_wer", "exact")
  ctc = task.scores["ctc"]  # lacks the first word, which is the name
  assert (ctc["b_wer"].value, ctc["u_wer"].value) == (100.0, 0.0)
  assert task.predictions[0].names == ("w1", "unsaid")
  plain = runner.evaluate(FakeSpeechModel(), _examples("named", 4), SETTINGS, kinds=kinds).tasks[0]
  assert tuple(plain.scores["slm"]) == ("wer", "exact")


def test_wrong_audio_makes_a_listener_collapse(result):
  assert result.tasks[0].scores["shuffled"]["wer"].value > 30
  assert result.tasks[1].scores["shuffled"]["bleu"].value < 50
  assert result.tasks[2].scores["shuffled"]["exact"].value == 0.0
  for prediction in result.tasks[0].predictions:
    assert prediction.shuffled_with not in (None, prediction.id)


def test_wrong_audio_changes_nothing_for_a_model_that_is_deaf():
  deaf = runner.evaluate(FakeSpeechModel(listens=False), _examples("repeat", 6), SETTINGS)
  scores = deaf.tasks[0].scores
  assert scores["slm"]["wer"].value == scores["shuffled"]["wer"].value


def test_the_verdict_flags_a_model_that_does_not_listen(result):
  for task in result.tasks:
    verdict = task.listening
    assert verdict.listens and verdict.gain > 0 and verdict.metric == KIND_METRICS[task.kind][0]
    assert verdict.slm == task.scores["slm"][verdict.metric].value
  examples = [*_examples("repeat", 6), *_examples("translate", 6), *_examples("question", 6)]
  for task in runner.evaluate(FakeSpeechModel(listens=False), examples, SETTINGS).tasks:
    assert not task.listening.listens and task.listening.gain == 0.0
  lonely = runner.evaluate(FakeSpeechModel(), _examples("repeat", 1), SETTINGS)
  assert lonely.tasks[0].listening is None


def test_all_tasks_share_one_shape():
  model = FakeSpeechModel()
  runner.evaluate(model, _examples("repeat", 7) + _examples("translate", 4), SETTINGS)
  assert len([shape for shape in model.shapes if shape[0] == "speech"]) == 1


def test_one_example_has_no_wrong_audio():
  task = runner.evaluate(FakeSpeechModel(), _examples("repeat", 1), SETTINGS).tasks[0]
  assert set(task.scores) == {"slm", "ctc", "cascade", "oracle", "silenced"}
  assert task.predictions[0].shuffled_with is None


def test_an_encoder_without_a_head_is_not_asked_for_its_ctc():
  model = FakeSpeechModel(has_ctc=False)
  task = runner.evaluate(model, _examples("repeat", 4), SETTINGS).tasks[0]
  assert set(task.scores) == {"slm", "oracle", "shuffled", "silenced"}
  assert not any(shape[0] == "ctc" for shape in model.shapes)


def test_timings_and_progress():
  seen = []
  result = runner.evaluate(
    FakeSpeechModel(), _examples("repeat", 4), SETTINGS, on_progress=lambda *args: seen.append(args)
  )
  task = result.tasks[0]
  assert tuple(task.seconds) == runner.SYSTEMS
  assert 0 < task.first_batch_seconds <= task.seconds["slm"]
  assert task.audio_seconds == pytest.approx(4 * 1_000 / 16_000)
  assert [s for s in seen if s[1] == "slm"] == [("repeat", "slm", i, 4) for i in (1, 2, 3, 4)]


def test_kinds_can_be_named_and_are_checked():
  examples = _examples("mini_asr_heldout", 3)
  task = runner.evaluate(
    FakeSpeechModel(), examples, SETTINGS, kinds={"mini_asr_heldout": "transcription"}
  ).tasks[0]
  assert task.kind == "transcription"
  with pytest.raises(ValueError, match="unknown kinds"):
    runner.evaluate(FakeSpeechModel(), examples, SETTINGS, kinds={"a": "asr"})
  with pytest.raises(ValueError, match="no examples"):
    runner.evaluate(FakeSpeechModel(), [], SETTINGS)


@pytest.mark.parametrize("size", [2, 3, 4, 17, 100])
@pytest.mark.parametrize("seed", range(5))
def test_a_derangement_has_no_fixed_point(size, seed):
  result = runner.derangement(list(range(size)), seed)
  assert result is not None and sorted(result) == list(range(size))
  assert all(i != j for i, j in enumerate(result))


@pytest.mark.parametrize("seed", range(20))
def test_a_derangement_gives_nobody_an_equal_key(seed):
  rng = np.random.default_rng(seed)
  keys = rng.integers(0, 6, 40).tolist()
  result = runner.derangement(keys, seed)
  assert result is not None and sorted(result) == list(range(40))
  assert all(keys[i] != keys[j] for i, j in enumerate(result))
  assert result == runner.derangement(keys, seed)


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "a"], ["a", "a", "b"]])
def test_no_derangement_where_none_exists(keys):
  assert runner.derangement(keys, 0) is None


def test_half_of_one_key_is_still_deranged():
  assert runner.derangement(["a", "b", "a", "c"], 0) is not None


# --- files -----------------------------------------------------------------------------------


def _lines(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_predictions_and_metrics_are_written(tmp_path, result):
  written = writer.write_evaluation(result, tmp_path, 1200)
  assert [path.name for path in written[-2:]] == ["eval.json", "eval.md"] and len(written) == 8
  lines = _lines(tmp_path / "inference_eval" / "translate-1200.jsonl")
  assert len(lines) == 4
  assert lines[0]["inputs"]["instruction"] == ":translate"
  assert lines[0]["prediction"] == lines[0]["target"] == "W1 W2 W3 W4 W5"
  assert set(lines[0]["others"]) == {"cascade", "oracle", "shuffled", "silenced"}
  (metrics,) = _lines(tmp_path / "inference_eval" / "translate-metrics.jsonl")
  assert metrics["step"] == 1200 and metrics["decoding"]["num_beams"] == 1
  assert metrics["scores"]["slm"]["bleu"]["value"] == pytest.approx(100.0)
  assert "tok:13a" in metrics["scores"]["slm"]["bleu"]["signature"]
  (metrics,) = _lines(tmp_path / "inference_eval" / "repeat-metrics.jsonl")
  assert metrics["scores"]["slm"]["wer"]["normaliser"] == "basic-1"


def test_metrics_keep_one_line_a_step_in_order(tmp_path, result):
  for step in (200, 100, 200):
    writer.write_evaluation(result, tmp_path, step)
  lines = _lines(tmp_path / "inference_eval" / "repeat-metrics.jsonl")
  assert [line["step"] for line in lines] == [100, 200]


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "a.jsonl"
  writer.write_json_lines(path, [{"a": "line\u2028separator"}])
  with pytest.raises(ValueError, match="JSON"):
    writer.write_json_lines(path, [{"a": 2}, {"a": float("nan")}])
  assert _lines(path) == [{"a": "line\u2028separator"}]
  assert list(tmp_path.iterdir()) == [path]


def test_a_task_name_that_is_no_file_name_is_refused_before_writing(tmp_path, result):
  bad = dataclasses.replace(result.tasks[0], task="../x")
  with pytest.raises(ValueError, match="task name"):
    writer.write_evaluation(dataclasses.replace(result, tasks=(bad,)), tmp_path, 1)
  assert list(tmp_path.iterdir()) == []
