"""Evaluations read back from their files: scored anew, and side by side."""

import dataclasses
import json

import pytest

from slm_jax.errors import UserError
from slm_jax.evaluation import runner, writer
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.comparison import Entry, compare, write_comparison
from slm_jax.evaluation.generation import GenerationSettings
from slm_jax.evaluation.provenance import Provenance, code_version, examples_digest
from slm_jax.evaluation.rescoring import rescore
from tests.evaluation.test_runner import Example, _examples
from tests.fake_speech_model import FakeSpeechModel

SETTINGS = GenerationSettings(batch_size=3, max_new_tokens=64)
RESAMPLING = Resampling(resamples=100)


def _write(folder, examples, step=1, **model):
  result = runner.evaluate(FakeSpeechModel(**model), examples, SETTINGS, resampling=RESAMPLING)
  provenance = Provenance(
    model={"source": "x", "step": step, "adapter (fingerprint)": "abc"},
    code=code_version(),
    data={"repeat": {"cache": "123"}},
    normaliser="basic-1",
  )
  writer.write_evaluation(result, folder, step, provenance, RESAMPLING)
  return result


@pytest.fixture
def folders(tmp_path):
  examples = [*_examples("repeat", 8), *_examples("translate", 5)]
  _write(tmp_path / "good", examples)
  _write(tmp_path / "deaf", examples, listens=False)
  return tmp_path


def test_texts_come_back_as_they_were_written(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Named(Example):
    names: tuple[str, ...] = ("w1", "a b")

  examples = [Named(**vars(e)) for e in _examples("repeat", 3)]
  result = _write(tmp_path, examples)
  assert writer.read_predictions(tmp_path, "repeat", 1) == result.tasks[0].predictions


def test_scoring_again_gives_the_same_and_another_normaliser_another(folders):
  (before, _) = writer.read_metrics(folders / "good")
  again = rescore(folders / "good")[0]
  for name in ("scores", "rates", "agreement", "listening", "seconds", "decoding", "bootstrap"):
    assert json.loads(json.dumps(again[name])) == before[name]
  assert again["provenance"]["model"] == before["provenance"]["model"]
  path = folders / "good" / "inference_eval" / "repeat-1.jsonl"
  path.write_text(path.read_text().replace('"prediction": "w1', '"prediction": "W1,'))
  assert rescore(folders / "good")[0]["scores"]["slm"]["exact"]["value"] == 100.0
  changed = rescore(folders / "good", normaliser="none")[0]
  assert changed["scores"]["slm"]["exact"]["value"] == 87.5
  assert changed["provenance"]["normaliser"] == "none"
  summary = json.loads((folders / "good" / "eval.json").read_text())
  assert summary["evaluations"] == json.loads(json.dumps(writer.read_metrics(folders / "good")))
  assert "87.5 [" in (folders / "good" / "eval.md").read_text()


def test_every_line_says_where_its_scores_come_from(folders):
  line = writer.read_metrics(folders / "good")[0]
  provenance = line["provenance"]
  assert provenance["prompts"]["texts"] == {":repeat": 8} and provenance["prompts"]["count"] == 1
  assert provenance["data"] == {"cache": "123"} and provenance["normaliser"] == "basic-1"
  assert "code (slm_jax)" in provenance["code"] and len(provenance["code"]["commit"]) == 40
  assert line["decoding"]["num_beams"] == 1 and line["bootstrap"]["resamples"] == 100
  text = (folders / "good" / "eval.md").read_text()
  for part in ("abc", "num_beams `1`", provenance["code"]["commit"], "`basic-1`", "It listens"):
    assert part in text
  assert "does not listen" in (folders / "deaf" / "eval.md").read_text()


def test_a_comparison_is_paired_over_the_same_examples(folders):
  found = compare(
    [Entry(name="good", folder=folders / "good"), Entry(name="deaf", folder=folders / "deaf")],
    resampling=RESAMPLING,
  )
  first, second = found["tasks"]["repeat"]["wer"]
  assert first["value"] == 0.0 and first["difference"] is None
  assert second["difference"]["value"] == second["value"] > 50
  assert second["difference"]["significant"] and second["difference"]["count"] == 8
  paths = write_comparison(folders / "out" / "c.html", found)
  assert [path.name for path in paths] == ["c.json", "c.md", "c.html"]
  assert json.loads(paths[0].read_text()) == json.loads(json.dumps(found))
  assert "| WER | 0.0 [0.0, 0.0] |" in paths[1].read_text()
  page = paths[2].read_text()
  assert page.count("<svg") == 2 and "good" in page and "deaf" in page


def test_tasks_examples_and_steps_that_one_side_lacks(folders):
  _write(folders / "more", _examples("repeat", 4), step=7)
  _write(folders / "more", [*_examples("repeat", 3), *_examples("question", 3)], step=9)
  entries = [
    Entry(name="a", folder=folders / "good"),
    Entry(name="b", folder=folders / "more", step=7),
  ]
  found = compare(entries, resampling=RESAMPLING)["tasks"]
  assert found["repeat"]["wer"][1]["difference"]["count"] == 4
  assert found["translate"]["bleu"][1] is None and "question" not in found
  newest = compare([entries[0], Entry(name="b", folder=folders / "more")], resampling=RESAMPLING)
  assert newest["entries"][1]["step"] == 9 and newest["tasks"]["question"]["exact"][0] is None


def test_what_cannot_be_read_is_said_in_a_line(folders, tmp_path):
  good = Entry(name="good", folder=folders / "good")
  with pytest.raises(UserError, match="different names"):
    compare([good, good])
  with pytest.raises(UserError, match="holds no evaluation"):
    rescore(tmp_path / "nothing")
  with pytest.raises(UserError, match="no evaluation of step 3; it has those of \\[1\\]"):
    compare([good, Entry(name="x", folder=folders / "deaf", step=3)])
  path = folders / "good" / "inference_eval" / "repeat-1.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:-1]))
  with pytest.raises(UserError, match="has 7 texts, its scores are of 8"):
    rescore(folders / "good")
  path.write_text("".join(lines)[:-9])
  with pytest.raises(UserError, match="is damaged"):
    rescore(folders / "good")


def test_the_digest_of_examples_changes_with_anything_in_them():
  examples = _examples("repeat", 3)
  before = examples_digest(examples)
  assert before == examples_digest(_examples("repeat", 3))
  for change in ({"instruction": "x"}, {"target": "x"}, {"transcript": "x"}, {"id": "x"}):
    assert examples_digest([*examples[:2], dataclasses.replace(examples[2], **change)]) != before
  examples[0].audio[5] += 1
  assert examples_digest(examples) != before
