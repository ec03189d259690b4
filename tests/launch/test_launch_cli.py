"""`slm_jax launch`: what it refuses, that preflight comes first, that a dry run touches nothing, and the image."""

import dataclasses
import fnmatch
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
from slm_jax.launch.container import build_commands, path_in_image

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

  def preflight(run, topology, **options):
    fake.asked.append((run, topology))
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
    (text,) = re.findall(
      r"--command=(.*)",
      "\n".join(word for line in printed.splitlines() for word in shlex.split(line)),
    )
    command = shlex.split(text)
  command = command[command.index("slm_jax") :]
  assert command == [
    "slm_jax",
    "train",
    "--gin_file=gin/experiments/mini.gin",
    "--gin.MODEL_DIR='gs://my-bucket/my run'",
    "--stopped_status=143",
  ]


def test_a_job_that_does_not_fit_is_not_started(fits, started, capsys):
  fits.verdict = False
  status, printed, errors = launched([*RUN, *TARGETS["xpk"]], capsys)
  assert status == 2 and not started and not printed
  assert "not launched: v5e:4x4: does not fit, 1.50 GiB short" in errors
  assert launched([*RUN, *TARGETS["xpk"], "--skip_preflight"], capsys)[0] == 0
  assert len(started) == 1 and len(fits.asked) == 1


def test_preflight_sees_one_slice_with_its_rows(fits, capsys):
  args = [*RUN, *TARGETS["xpk"], "--gin.BATCH_SIZE=32", "--dry_run"]
  assert launched([*args, "--num_slices=2"], capsys)[0] == 0
  ((run, topology),) = fits.asked
  assert (run.train_dataset.batch_size, topology) == (16, "v5e:4x4")
  status, _, errors = launched([*args, "--num_slices=3"], capsys)
  assert status == 2 and "BATCH_SIZE=32 does not divide over 3 slices" in errors


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
  args = ["--gin_file=experiments/mini.gin", "--gin.MODEL_DIR='x'"]
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
  """Whether .dockerignore leaves `path` out: a pattern covers what lies below it; ** is any depth."""
  for pattern in (ROOT / ".dockerignore").read_text().split("\n"):
    if pattern and not pattern.startswith("#"):
      parents = [path, *(str(parent) for parent in Path(path).parents)]
      plain = pattern.removeprefix("**/")
      names = [Path(parent).name for parent in parents] if pattern != plain else parents
      if any(fnmatch.fnmatch(name, plain) for name in names):
        return True
  return False


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
