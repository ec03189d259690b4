"""register_speech_task: the ten lines of the page, and what becomes of its arguments."""

import json
import re
import shlex
import sys

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax.cli.main import main
from slm_jax.data import registry as task_registry
from slm_jax.data.seqio_cache import cache_task
from slm_jax.data.speech_tasks import register_speech_task
from slm_jax.data.vocabulary import MINI_VOCABULARY, vocabulary
from slm_jax.errors import UserError

SPEAKERS = ("ann", "bob", "eve")


def blocks(page, language):
  return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def page(request):
  return (request.config.rootpath / "docs/new_task.md").read_text()


@pytest.fixture
def digits(tmp_path, monkeypatch):
  """A working directory with recordings laid out as in the data set of the page."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("SLM_JAX_CACHE_DIR", str(tmp_path / "cache"))
  folder = tmp_path / "free-spoken-digit-dataset" / "recordings"
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for digit in range(10):
    for speaker in SPEAKERS:
      audio = rng.normal(0, 2_000, 4_000).astype(np.int16)
      soundfile.write(folder / f"{digit}_{speaker}_0.wav", audio, 8_000)
  return tmp_path


def test_the_page_works_as_it_stands(page, digits, registry, monkeypatch, capsys):
  manifest, task, answered, *_ = blocks(page, "python")
  exec(compile(manifest, "new_task.md", "exec"), {})
  assert task.count("\n") <= 11
  (digits / "my_digits.py").write_text(task)
  monkeypatch.delitem(sys.modules, "my_digits", raising=False)
  commands = [
    shlex.split(line)[1:]
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("slm_jax tasks")
  ]
  assert [command[1] for command in commands] == ["show", "check", "self_targets"]
  for command in commands:
    assert main(command) == 0
  printed = capsys.readouterr().out
  assert "audio 8000" in printed and "nothing that would hurt training" in printed
  assert len(list((digits / "shown").glob("*.png"))) == 2
  exec(compile(answered, "new_task.md", "exec"), {"register_speech_task": register_speech_task})
  answers = seqio.TaskRegistry.get("my_digits_answered").source
  assert sum(map(answers.num_input_examples, answers.splits)) > 20
  cache_task("my_digits", registry, quiet=True)
  heard = {}
  for split in ("train", "validation"):
    dataset = seqio.TaskRegistry.get("my_digits").get_dataset(None, split, use_cached=True)
    heard[split] = list(dataset.as_numpy_iterator())
  assert sum(map(len, heard.values())) == 30 and len(heard["train"]) > len(heard["validation"]) > 0
  assert {e["targets_pretokenized"] for e in heard["train"]} >= {b"nine", b"zero"}
  asked = {e["inputs_pretokenized"] for e in heard["train"]}
  assert asked == {b"Write this down.", b"Which digit is this?"}
  assert {e["language"] for e in heard["train"]} == {b"en"}


def test_the_page_s_other_example_registers_and_names_every_column(page, registry, tmp_path):
  (example,) = [b for b in blocks(page, "python") if "calls_es" in b]
  exec(compile(example, "new_task.md", "exec"), {"register_speech_task": register_speech_task})
  task = seqio.TaskRegistry.get("calls_es")
  assert set(task.splits) == {"train", "validation"}
  settings = task.source.settings
  (hinted,) = [b for b in blocks(page, "python") if "calls_names" in b]
  exec(compile(hinted, "new_task.md", "exec"), {"register_speech_task": register_speech_task})
  assert seqio.TaskRegistry.get("calls_names").source.settings.hints.distractors == 50
  (line,) = re.findall(r"\*\*Columns\.\*\*(.*?)are found", page, re.DOTALL)
  assert set(re.findall(r"`(\w+)`", line)) == set(vars(settings.columns))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_page_s_gin_commands_name_what_there_is(page, request, mode):
  (command,) = [block for block in blocks(page, "sh") if f"slm_jax {mode}" in block]
  (gin,) = re.findall(r"--gin_file=(\S+)", command)
  text = (request.config.rootpath / "gin" / gin).read_text()
  for macro in re.findall(r"--gin\.(\w+)=", command):
    assert macro == "MODEL_DIR" or f"{macro} =" in text


def test_a_task_without_an_instruction_has_no_inputs(registry):
  task = register_speech_task("plain", "m.jsonl")
  assert set(task.output_features) == {"audio", "targets"}
  task = register_speech_task("asked", "m.jsonl", instruction="Write.")
  assert set(task.output_features) == {"audio", "inputs", "targets"}


@pytest.mark.parametrize(
  ("metrics", "kind"),
  [
    (["wer", "cer"], "transcription"),
    (["bleu", "exact"], "translation"),
    (["exact"], "answer"),
    (["jga"], "dialogue_state"),
  ],
)
def test_metrics_are_seqio_s_and_decide_how_eval_scores(registry, metrics, kind):
  register_speech_task("scored", "m.jsonl", metrics=metrics)
  task = seqio.TaskRegistry.get("scored")
  assert task_registry.task_kinds(["scored"]) == {"scored": kind}
  wrong = {}
  for metric in task.metric_fns:
    wrong |= metric(["one two", "three four"], ["one two", "three five"])
  assert list(wrong) == metrics
  assert wrong.get("wer", 25.0) == 25.0 and wrong.get("exact", 50.0) == 50.0


def test_metrics_that_need_names_are_not_seqio_s(registry):
  register_speech_task("biased", "m.jsonl", metrics=["wer", "b_wer", "u_wer"])
  task = seqio.TaskRegistry.get("biased")
  assert task_registry.task_kinds(["biased"]) == {"biased": "biasing"}
  assert [name for metric in task.metric_fns for name in metric(["a"], ["a"])] == ["wer"]


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ({"metrics": ["war"]}, "'war' is none of wer"),
    ({"metrics": ["wer", "bleu"]}, "no kind of task"),
    ({"columns": {"sound": "path"}}, "no 'sound' is known"),
    ({"max_seconds": 0}, "must be positive"),
    ({"max_seconds": float("nan")}, "must be positive"),
    ({"max_problem_share": 2}, "is not a share"),
    ({"splits": {"train": 0.5}}, "add up to 1"),
  ],
)
def test_arguments_that_do_not_go_together_are_refused(registry, arguments, says):
  with pytest.raises(ValueError, match=says):
    register_speech_task("refused", "m.jsonl", **arguments)
  assert "refused" not in seqio.TaskRegistry.names()


def test_vocabulary_is_the_lm_s(registry, tmp_path, monkeypatch):
  (tmp_path / "spiece.model").write_bytes(MINI_VOCABULARY.read_bytes())
  assert vocabulary(tmp_path) is vocabulary(tmp_path)
  assert register_speech_task("mini", "m.jsonl").output_features["targets"].vocabulary is (
    vocabulary()
  )
  monkeypatch.setenv("SLM_JAX_VOCABULARY", str(tmp_path))
  task = register_speech_task("own", "m.jsonl")
  assert task.output_features["targets"].vocabulary is vocabulary(tmp_path)
  (tmp_path / "text.model").write_text("this is no model")
  for name in ("nothing", "text.model"):
    with pytest.raises(UserError, match=f"{name} is no SentencePiece model.*SLM_JAX_VOCABULARY"):
      vocabulary(tmp_path / name)


def test_speakers_stay_in_one_split_and_records_in_theirs(registry, tmp_path):
  soundfile.write(tmp_path / "a.wav", np.ones(1_600, np.int16), 16_000)

  def members(count, **arguments):
    rows = (
      {"audio": "a.wav", "text": "x", "id": f"r{n}", "speaker": f"s{n % 17}"} for n in range(count)
    )
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = f"task{len(seqio.TaskRegistry.names())}"
    splits = {"train": 0.7, "validation": 0.3}
    source = register_speech_task(name, tmp_path / "m.jsonl", splits=splits, **arguments).source
    return {
      split: {
        (example["id"], example["voice"])
        for example in source.make_examples(split, 0, source.num_input_examples(split))
      }
      for split in splits
    }

  few, many = members(100), members(200)
  assert few["train"] < many["train"] and few["validation"] < many["validation"]
  assert 110 < len(many["train"]) < 170 and sum(map(len, many.values())) == 200
  apart = members(100, split_by="speaker")
  speakers = [{speaker for _, speaker in rows} for rows in apart.values()]
  assert not speakers[0] & speakers[1] and len(speakers[0] | speakers[1]) == 17
