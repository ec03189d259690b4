"""An evaluation that is broken off goes on where it was, and nothing is asked for twice."""

import json
import math

import pytest
from etils import epath

from slm_jax.evaluation import runner
from slm_jax.evaluation.generation import GenerationSettings
from slm_jax.evaluation.kept_texts import KeptTexts
from tests.evaluation.test_runner import _examples
from tests.fake_speech_model import FakeSpeechModel

SETTINGS = GenerationSettings(batch_size=3, max_new_tokens=64)


class Broken(Exception):
  pass


def _evaluate(folder, model, *, stop=None, facts=None, examples=None, seconds=0.0):
  """`stop`: (task, system, number of texts) after which the evaluation breaks off."""

  def progress(task, system, done, total):
    if (task, system, done) == stop:
      raise Broken

  return runner.evaluate(
    model,
    examples or [*_examples("repeat", 8), *_examples("translate", 5)],
    SETTINGS,
    kept=KeptTexts(epath.Path(folder), facts or {"model": "a"}, seconds=seconds),
    on_progress=progress,
  )


def _texts(result):
  return [(p.id, p.texts, p.score) for task in result.tasks for p in task.predictions]


@pytest.mark.parametrize(
  "stop", [("repeat", "slm", 4), ("repeat", "cascade", 8), ("translate", "shuffled", 4)]
)
def test_a_broken_evaluation_goes_on_and_gives_the_same(tmp_path, stop):
  whole, first, second = FakeSpeechModel(), FakeSpeechModel(), FakeSpeechModel()
  expected = _evaluate(tmp_path / "whole", whole)
  with pytest.raises(Broken):
    _evaluate(tmp_path / "kept", first, stop=stop)
  assert _texts(_evaluate(tmp_path / "kept", second)) == _texts(expected)
  # At most the batch that was broken off and one that is cut anew.
  assert 0 < second.calls <= whole.calls - first.calls + 2
  third = FakeSpeechModel()
  assert _texts(_evaluate(tmp_path / "kept", third)) == _texts(expected)
  assert third.calls == 0 and not third.shapes


def test_texts_of_anything_else_are_not_used(tmp_path):
  _evaluate(tmp_path, FakeSpeechModel())
  other_model, other_data = FakeSpeechModel(), FakeSpeechModel()
  _evaluate(tmp_path, other_model, facts={"model": "b"})
  assert other_model.calls > 0
  examples = _examples("repeat", 8)
  examples[3].audio[0] += 1
  _evaluate(tmp_path, other_data, facts={"model": "b"}, examples=examples)
  assert other_data.calls > 0


def test_a_damaged_file_is_as_none(tmp_path):
  _evaluate(tmp_path, FakeSpeechModel())
  for path in tmp_path.iterdir():
    path.write_text(path.read_text()[:-5])
  model = FakeSpeechModel()
  _evaluate(tmp_path, model)
  assert model.calls > 0


def test_files_are_written_now_and_then_and_when_complete_and_go_in_the_end(tmp_path):
  kept = KeptTexts(epath.Path(tmp_path / "k"), {}, seconds=1_000)
  kept.save("t", "slm", {}, [("a", 1.0)], complete=False)
  assert kept.load("t", "slm", {}) == []
  kept.save("t", "slm", {}, [("a", 1.0), ("b", math.nan)], complete=True)
  (_, score), (text, missing) = kept.load("t", "slm", {})
  assert (score, text) == (1.0, "b") and math.isnan(missing)
  assert [json.loads(p.read_text())["answers"] for p in (tmp_path / "k").iterdir()] == [
    [["a", 1.0], ["b", None]]
  ]
  kept.clear()
  assert not (tmp_path / "k").exists()


def test_processes_that_write_nothing_take_the_first_ones_texts(tmp_path):
  first = KeptTexts(epath.Path(tmp_path), {}, agree=lambda found: found)
  first.save("t", "slm", {}, [("a", 1.0)], complete=True)
  told = first.load("t", "slm", {})
  other = KeptTexts(epath.Path("/nowhere"), {}, writes=False, agree=lambda found: told)
  other.save("t", "slm", {}, [("x", 1.0)], complete=True)
  assert other.load("t", "slm", {}) == [("a", 1.0)]
