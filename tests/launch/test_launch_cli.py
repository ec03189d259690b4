"""`slm_jax launch`: what it refuses, that preflight comes first, that a dry run touches nothing, and the image."""

import dataclasses
import inspect
import os
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml

from slm_jax import config
from slm_jax.cli import launch as launch_cli
from slm_jax.cli import train as train_cli
from slm_jax.cli.main import main
from slm_jax.errors import UserError
from slm_jax.launch import preflight as preflight_module
from slm_jax.launch.commands import Command, Runner
from slm_jax.launch.container import build_commands, ignored_by, path_in_image

ROOT = config.PACKAGE_ROOT.resolve()
RUN = [
  "--name=my-run",
  "--topology=v5e:4x4",
  "--image=us-docker.pkg.dev/p/r/slm_jax:1",
  "--gin_file=experiments/mini.gin",
  "--gin.MODEL_DIR='gs://my-bucket/my run'",
]
TARGETS = {
  "xpk": ["--target=xpk", "--cluster=pods"],
  "jobset": ["--target=jobset"],
  "tpu_vm": ["--target=tpu_vm", "--zone=us-west4-a"],
}


@pytest.fixture
def fits(monkeypatch):
  """A preflight whose verdict is `.verdict` and that remembers what it was asked."""
  fake = types.SimpleNamespace(verdict=True, asked=[])

  real = inspect.signature(preflight_module.preflight)

  def preflight(run, topology, *, num_slices, programs, note):
    real.bind(run, topology, num_slices=num_slices, programs=programs, note=note)
    fake.asked.append((run, topology, num_slices, programs))
    summary = f"{topology}: fits" if fake.verdict else f"{topology}: does not fit, 1.50 GiB short"
    return types.SimpleNamespace(fits=fake.verdict, summary=lambda: summary)

  monkeypatch.setattr(preflight_module, "preflight", preflight)
  return fake


@pytest.fixture(autouse=True)
def started(monkeypatch) -> list[Command]:
  """The programs that would have been started; each ends with status 0."""
  commands: list[Command] = []

  def start(self, command: Command, *, capture: bool):
    commands.append(command)
    return types.SimpleNamespace(returncode=0, stdout="ACTIVE\n", stderr="")

  monkeypatch.setattr(Runner, "_start", start)
  return commands


def launched(args: list[str], capsys) -> tuple[int, str, str]:
  status = main(["launch", *args])
  output = capsys.readouterr()
  return status, output.out, output.err


@pytest.mark.parametrize("target", TARGETS)
def test_a_dry_run_prints_what_is_started_otherwise(target, fits, started, capsys):
  status, printed, _ = launched([*RUN, *TARGETS[target], "--dry_run"], capsys)
  assert status == 0 and not started
  assert launched([*RUN, *TARGETS[target]], capsys)[0] == 0
  shown = [command.shown() for command in started]
  if target == "tpu_vm":
    # The machines are there already, so they are described and not asked for; the rest is the same.
    create, *rest = printed.splitlines()
    assert shlex.split(create)[4] == "create" and shown == rest
  else:
    assert printed == "".join(f"{line}\n" for line in shown)


@pytest.mark.parametrize("target", TARGETS)
def test_the_job_trains_with_the_same_gin_files_and_bindings(target, fits, capsys):
  _, printed, _ = launched([*RUN, *TARGETS[target], "--dry_run"], capsys)
  if target == "jobset":
    body = printed.split("<<'END'\n")[1].removesuffix("END\n")
    pod = yaml.safe_load(body)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
  else:
    words = [word for line in printed.splitlines() for word in shlex.split(line)]
    texts = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    (text,) = [text for text in texts if "slm_jax train" in text]
    command = shlex.split(text.partition("; fi")[0].removesuffix("; fi"))
  command = command[command.index("slm_jax") :]
  assert command == [
    "slm_jax",
    "train",
    "--gin_file=gin/experiments/mini.gin",
    "--gin.MODEL_DIR='gs://my-bucket/my run'",
    "--stopped_status=143",
    "--roll_call_seconds=600",
  ]


def test_a_job_that_does_not_fit_is_not_started(fits, started, capsys):
  fits.verdict = False
  status, printed, errors = launched([*RUN, *TARGETS["xpk"]], capsys)
  assert status == 2 and not started and not printed
  assert "not launched: v5e:4x4: does not fit, 1.50 GiB short" in errors
  assert launched([*RUN, *TARGETS["xpk"], "--skip_preflight"], capsys)[0] == 0
  assert len(started) == 1 and len(fits.asked) == 1


def test_preflight_sees_the_run_on_all_its_slices(fits, capsys):
  args = [*RUN, *TARGETS["xpk"], "--gin.BATCH_SIZE=96", "--num_slices=2", "--dry_run"]
  assert launched(args, capsys)[0] == 0
  ((run, topology, num_slices, programs),) = fits.asked
  assert (run.train_dataset.batch_size, topology, num_slices) == (96, "v5e:4x4", 2)
  assert programs == ("train",)


@pytest.mark.parametrize(
  ("bindings", "said"),
  [
    (["AdapterRecipe.speech_encoder='/bases/encoder'"], "is outside"),
    (["AdapterRecipe.language_model='../mt5'"], "is outside"),
    (["AdapterRecipe.language_model='runs/mt5'"], ".dockerignore leaves out runs"),
    (["INITIAL_CHECKPOINT_PATH='/other/checkpoint_1'"], "is outside"),
    ([f"AdapterRecipe.language_model='{ROOT}/bases/mt5'"], "image has it as bases/mt5"),
    (["MIXTURE_OR_TASK_MODULE='tasks.no_such'"], "MIXTURE_OR_TASK_MODULE='tasks.no_such'"),
    (["MIXTURE_OR_TASK_MODULE='no_such.tasks'"], "MIXTURE_OR_TASK_MODULE='no_such.tasks'"),
    (["MIXTURE_OR_TASK_MODULE='json'"], "is outside"),
  ],
  ids=str,
)
def test_what_the_image_lacks_is_found_before_it_is_paid_for(bindings, said, fits, started, capsys):
  args = [*RUN, *TARGETS["xpk"], *(f"--gin.{binding}" for binding in bindings)]
  status, _, errors = launched(args, capsys)
  assert status == 2 and said in errors and not started and not fits.asked


def test_bases_of_the_image_and_of_buckets_are_accepted(fits, capsys):
  bindings = [
    "--gin.AdapterRecipe.speech_encoder='bases/encoder'",
    "--gin.AdapterRecipe.language_model='gs://my-bucket/mt5/checkpoint_1000000'",
  ]
  assert launched([*RUN, *TARGETS["xpk"], *bindings, "--dry_run"], capsys)[0] == 0


def test_a_base_without_weights_is_refused(fits, capsys):
  args = [arg for arg in RUN if not arg.startswith("--gin_file")]
  args += [
    "--gin_file=experiments/slm_2310_00230.gin",
    "--gin.MIXTURE_OR_TASK_NAME='mini_slm'",
    "--gin.MIXTURE_OR_TASK_MODULE='tasks.mini'",
    "--gin.EVAL_TASKS=('mini_asr',)",
  ]
  status, _, errors = launched([*args, *TARGETS["xpk"]], capsys)
  assert status == 2 and "AdapterRecipe.speech_encoder has a shape and no weights" in errors


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (["--gin.MODEL_DIR='runs/mini'"], "share no disk"),
    (["--gin.MODEL_DIR='/tmp/x'"], "share no disk"),
    (["--gin.MODEL_DIR='gs://'"], "share no disk"),
    (["--topology=v5e:3x3"], "no such slice"),
    (["--name=My_Run"], "lower-case"),
    (["--env=NOVALUE"], "NAME=VALUE"),
    (["--image="], "--image is required"),
    (["--keep"], "--keep is for --target=tpu_vm"),
    (["--priority=urgent"], "--priority=urgent: expected one of"),
    (["--num_slices=0"], "expected at least 1"),
    (["--target=tpu_vm", "--cluster=", "--zone=z", "--spot", "--reserved"], "one or the other"),
    (["--gin.NO_SUCH=1"], "nothing uses it"),
    (["--gin.MODEL_DIR='gs://my-bucket/a\tb'"], "control character"),
  ],
  ids=str,
)
def test_mistakes_are_one_line(changes, said, fits, started, capsys):
  given = [*RUN, *TARGETS["xpk"]]
  names = {change.partition("=")[0] for change in changes}
  args = [arg for arg in given if arg.partition("=")[0] not in names] + changes
  status, _, errors = launched(args, capsys)
  assert status == 2 and said in errors and not started and not fits.asked
  assert len([line for line in errors.splitlines() if line.startswith("slm_jax: error:")]) == 1


@pytest.mark.parametrize("target", ["xpk", "tpu_vm"])
def test_each_target_names_what_it_needs(target, capsys):
  status, _, errors = launched([*RUN, f"--target={target}"], capsys)
  assert status == 2 and f"--target={target} needs --" in errors


@pytest.mark.parametrize("target", TARGETS)
def test_delete_needs_no_more_than_a_name(target, started, capsys):
  args = ["--name=my-run", *TARGETS[target], "--delete"]
  status, printed, _ = launched([*args, "--dry_run"], capsys)
  assert status == 0 and not started and "delete" in printed
  assert launched(args, capsys)[0] == 0
  assert [f"{command.shown()}\n" for command in started] == [printed]


def test_build_comes_before_the_job(fits, started, capsys):
  assert launched([*RUN, *TARGETS["xpk"], "--build"], capsys)[0] == 0
  assert [command.args[:2] for command in started] == [
    ("docker", "build"),
    ("docker", "push"),
    ("xpk", "workload"),
  ]


def test_a_gin_file_that_no_image_has_is_refused(tmp_path, fits, capsys):
  outside = tmp_path / "mine.gin"
  outside.write_text('include "experiments/mini.gin"\n')
  args = [arg for arg in RUN if not arg.startswith("--gin_file")]
  status, _, errors = launched([*args, *TARGETS["xpk"], f"--gin_file={outside}"], capsys)
  assert status == 2 and "is outside" in errors
  assert path_in_image(ROOT / "gin" / ".." / "setup.py", ROOT) == "setup.py"


def test_a_program_that_fails_is_one_line(monkeypatch, fits, capsys):
  def start(self, command: Command, *, capture: bool):
    return types.SimpleNamespace(returncode=7, stdout="", stderr="")

  monkeypatch.setattr(Runner, "_start", start)
  status, _, errors = launched([*RUN, *TARGETS["xpk"]], capsys)
  assert status == 2 and "xpk workload create --workload=my-run … failed with status 7" in errors


def test_only_programs_that_ask_get_the_terminal(monkeypatch, tmp_path):
  monkeypatch.undo()
  with open(tmp_path / "typed", "w+") as typed:
    typed.write("y\n")
    typed.seek(0)
    monkeypatch.setattr(sys, "stdin", typed)
    before = os.dup(0)
    os.dup2(typed.fileno(), 0)
    try:
      assert Runner().read(Command(args=("cat",)))[1] == ""
      assert Runner().read(Command(args=("cat",), asks=True))[1] == "y\n"
    finally:
      os.dup2(before, 0)
      os.close(before)


def test_programs_run_without_a_shell(monkeypatch, capfd):
  monkeypatch.undo()
  text = "$(touch never); `x` 'y' \"z\""
  assert Runner().run(Command(args=("printf", "%s", text))) == 0
  output = capfd.readouterr()
  assert output.out == text
  assert shlex.split(output.err.removeprefix("+ ")) == ["printf", "%s", text]
  assert Runner().read(Command(args=("cat",), stdin="a\n")) == (0, "a\n", "")
  with pytest.raises(UserError, match="no-such-program is not installed"):
    Runner().run(Command(args=("no-such-program",)))


@pytest.mark.parametrize(("finished", "status"), [(True, 0), (False, 143)])
def test_a_stopped_run_can_be_told_from_a_finished_one(finished, status, monkeypatch):
  from slm_jax.training import loop

  result = types.SimpleNamespace(finished=finished)
  monkeypatch.setattr(loop, "train", lambda *args, **options: result)
  # The real one imports TensorFlow.
  batches = types.SimpleNamespace(
    open_batches=lambda *args: iter(()), open_held_out=lambda *args: None
  )
  monkeypatch.setitem(sys.modules, "slm_jax.cli.batches", batches)
  args = ["--gin_file=experiments/mini.gin", "--gin.MODEL_DIR='x'", "--roll_call_seconds=600"]
  assert train_cli.run([*args, "--stopped_status=143"]) == status
  assert train_cli.run(args) == 0


def test_help_shows_a_command_that_works(fits, capsys):
  example = launch_cli.EXAMPLE.replace("\\\n", " ")
  assert main(shlex.split(example)[1:]) == 0
  assert "xpk workload create" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["docs/first_pod_job.md", "docs/pods.md"])
def test_commands_of_the_pages_work(page, fits, capsys):
  blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  commands = [
    shlex.split(line, comments=True)[1:] for line in lines if line.startswith("slm_jax launch")
  ]
  assert commands
  for command in commands:
    assert main([*command, "--dry_run"]) == 0, command
  assert capsys.readouterr().out


def ignored(path: str) -> bool:
  return ignored_by(Path(path), ROOT) is not None


def test_image_is_built_of_what_a_run_needs():
  text = (ROOT / "Dockerfile").read_text()
  for line in text.splitlines():
    if line.startswith("COPY "):
      for source in line.split()[1:-1]:
        assert (ROOT / source).exists() and not ignored(source)
  for path in (
    "constraints.txt",
    "gin/experiments/mini.gin",
    "gin/runs/train.gin",
    "tasks/mini.py",
    "slm_jax/cli/train.py",
    "slm_jax/assets/mini/spiece.model",
  ):
    assert (ROOT / path).is_file() and not ignored(path), path
  for path in (
    ".git/config",
    ".venv/bin/python",
    "runs/mini/train.jsonl",
    "slm_jax/__pycache__/x.pyc",
  ):
    assert ignored(path), path
  build, push = build_commands("r/i:1", ROOT)
  assert build.args[-1] == str(ROOT) and push.args == ("docker", "push", "r/i:1")


def test_build_needs_a_checkout(tmp_path):
  with pytest.raises(UserError, match="no Dockerfile"):
    build_commands("r/i:1", tmp_path)


def test_commands_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Command(args=("a",)).args = ()  # pyright: ignore[reportAttributeAccessIssue]
