"""`slm_jax eval` around its models: what it says before it reads any, and what it does with several."""

import numpy as np
import pytest

from slm_jax.cli import eval as eval_cli
from slm_jax.cli import eval_subjects
from slm_jax.cli.eval_subjects import named
from slm_jax.cli.main import INTERRUPTED, main
from slm_jax.errors import UserError
from slm_jax.evaluation.writer import read_metrics
from tests.evaluation.test_runner import _examples
from tests.fake_speech_model import FakeSpeechModel

MINI = ["eval", "--gin_file=experiments/mini.gin"]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("runs/mini", ("mini", "runs/mini")),
    ("runs/mini/", ("mini", "runs/mini/")),
    ("old=runs/mini", ("old", "runs/mini")),
    ("runs/lr=3", None),
    ("a b=runs/mini", None),
    ("old=", None),
  ],
)
def test_models_are_named_by_the_user_or_their_folder(text, expected):
  if expected is None:
    with pytest.raises(UserError, match="expected NAME=FOLDER"):
      named(text)
  else:
    assert named(text) == expected


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["--gin.eval.step='newest'"], "step='newest'"),
    (["--gin.eval.step=()"], "step=()"),
    (["--gin.eval.normaliser='whisper'"], "unknown normaliser 'whisper'"),
    (["--gin.eval.systems=('oracle',)"], "must name slm"),
    (["--gin.eval.bootstrap_resamples=0"], "resamples=0"),
    (["--gin.eval.step='all'"], "holds no checkpoint_<step>"),
    (["--bundle=a=no/such/bundle"], "no/such/bundle"),
    (["--normaliser=none"], "bind eval.normaliser"),
  ],
)
def test_mistakes_are_one_line_before_anything_is_read(argv, says, tmp_path, capsys):
  assert main([*MINI, f"--gin.MODEL_DIR='{tmp_path / 'run'}'", *argv]) == 2
  error = capsys.readouterr().err.strip()
  assert says in error and error.startswith("slm_jax: error:") and "\n" not in error


def test_help_shows_every_way_of_use(capsys):
  with pytest.raises(SystemExit):
    main(["eval", "--help"])
  text = capsys.readouterr().out
  for part in ("--bundle=old=", "--compare runs/mini", "--rescore runs/mini", "eval.step"):
    assert part in text


class _Model(FakeSpeechModel):
  params = {
    "adapter": {"w": np.ones(3, np.float32)},
    "language_model": {"w": np.zeros(2, np.float32)},
  }


@pytest.fixture
def two_models(monkeypatch, tmp_path):
  """`slm_jax eval` of one model that listens and one that does not, over examples that need no data."""
  models = {"good": _Model(), "deaf": _Model(listens=False)}

  def subjects(config, model_dirs, bundles):
    return [
      eval_subjects.Subject(
        name=name,
        folder=str(tmp_path / name),
        source=name,
        step=3,
        report="report.html",
        load=lambda mesh, name=name: models[name],
      )
      for name in models
    ]

  examples = [*_examples("mini_asr", 6), *_examples("mini_ast", 5)]
  monkeypatch.setattr(eval_subjects, "subjects", subjects)
  monkeypatch.setattr(
    eval_cli, "_examples", lambda config: (examples, {"mini_asr": {"cache": "1"}})
  )
  return models


def test_an_evaluation_of_two_models_from_start_to_comparison(two_models, tmp_path, capsys):
  argv = [
    *MINI,
    f"--gin.MODEL_DIR='{tmp_path}'",
    "--gin.eval.num_beams=1",
    "--gin.eval.bootstrap_resamples=50",
  ]
  deaf, heard = two_models["deaf"], two_models["deaf"].generate

  def broken(*args, **kwargs):
    raise KeyboardInterrupt

  deaf.generate = broken
  assert main(argv) == INTERRUPTED
  calls = two_models["good"].calls
  deaf.generate = heard
  assert calls > 0 and list(tmp_path.rglob(".kept-3"))
  assert main(argv) == 0
  # The first model's texts were there.
  assert two_models["good"].calls == calls and deaf.calls > 0
  assert not list(tmp_path.rglob(".kept*"))
  said = capsys.readouterr()
  flagged = said.out[said.out.index("deaf: scores") :]
  assert "mini_asr: It does not listen" in flagged and "mini_ast: It does not listen" in flagged
  assert "does not listen" not in said.out[: said.out.index("deaf: scores")]
  for path in (
    "good/report.html",
    "good/eval.md",
    "deaf/eval.json",
    "comparison.html",
    "comparison.md",
  ):
    assert (tmp_path / path).is_file()
  (line,) = [line for line in read_metrics(tmp_path / "good") if line["task"] == "mini_asr"]
  assert line["provenance"]["data"] == {"cache": "1"} and line["bootstrap"]["resamples"] == 50
  assert line["provenance"]["model"]["adapter (fingerprint)"]
  # From the texts alone.
  page = tmp_path / "c.html"
  both = [f"good={tmp_path / 'good'}@3", str(tmp_path / "deaf")]
  assert main(["eval", "--compare", *both, f"--report={page}"]) == 0 and page.is_file()
  assert main(["eval", "--rescore", str(tmp_path / "good"), "--normaliser=none"]) == 0
  assert read_metrics(tmp_path / "good")[0]["provenance"]["normaliser"] == "none"
  capsys.readouterr()
  for wrong, says in (
    (["--compare", str(tmp_path / "good")], "two evaluations"),
    (["--rescore", str(tmp_path)], "holds no evaluation"),
    (["--rescore", str(tmp_path / "good"), "--normaliser=x"], "unknown normaliser"),
    ([*argv[1:], "--report=r.html"], "go with one model"),
  ):
    assert main(["eval", *wrong]) == 2
    assert says in capsys.readouterr().err
