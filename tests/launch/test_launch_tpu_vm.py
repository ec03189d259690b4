"""Jobs on TPU VMs: the commands, what the machines' shell makes of them, and resuming after a preemption."""

import shlex
import subprocess

import pytest

from slm_jax.errors import UserError
from slm_jax.launch import tpu_vm
from slm_jax.launch.commands import Command, Runner
from slm_jax.launch.job import STOPPED_STATUS, Job
from slm_jax.launch.tpu_slice import parse_slice

PLACE = tpu_vm.Place(zone="us-west4-a", project="my-project")
HOSTILE = (
  "two words",
  'it\'s "quoted"',
  "$(touch never) `touch never` $HOME ${HOME} $$",
  "; touch never & | > < * ? ~ # ! \\ %s",
  "'; touch never; '",
  "",
)


def make_job(topology="v5e:4x4", **changes) -> Job:
  fields = {"name": "my-run", "image": "us-docker.pkg.dev/p/r/slm_jax:1", "command": ("slm_jax",)}
  return Job(tpu_slice=parse_slice(topology), **(fields | changes))


def test_commands_of_one_slice():
  job = make_job()
  start = ("gcloud", "compute", "tpus", "queued-resources")
  where = ("--zone=us-west4-a", "--project=my-project")
  assert tpu_vm.create(job, PLACE).args == (
    *start,
    "create",
    "my-run",
    *where,
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--node-id=my-run",
  )
  assert tpu_vm.describe("my-run", PLACE).args == (
    *start,
    "describe",
    "my-run",
    *where,
    "--format=value(state.state)",
  )
  assert tpu_vm.delete("my-run", PLACE).args == (
    *start,
    "delete",
    "my-run",
    *where,
    "--force",
    "--quiet",
  )
  script = tpu_vm.worker_script(job)
  assert tpu_vm.run(job, PLACE).args == (
    *start,
    "ssh",
    "my-run",
    *where,
    "--node=all",
    "--worker=all",
    f"--command={script}",
  )


def test_commands_of_several_slices_and_of_other_capacity():
  place = tpu_vm.Place(zone="z", runtime_version="other", service_account="a@b.iam", reserved=True)
  args = tpu_vm.create(make_job(num_slices=2, spot=True), place).args
  assert {"--node-count=2", "--node-prefix=my-run", "--spot", "--reserved"} <= set(args)
  assert {"--runtime-version=other", "--service-account=a@b.iam"} <= set(args)
  assert not any(argument.startswith(("--node-id", "--project")) for argument in args)


def test_other_shapes_are_asked_for_by_shape():
  args = tpu_vm.create(make_job("v4:4x4x16"), PLACE).args
  assert {"--type=v4", "--topology=4x4x16"} <= set(args)
  assert not any("--accelerator-type" in argument for argument in args)
  with pytest.raises(UserError, match="v5p-512 is another shape than 4x4x16"):
    tpu_vm.create(make_job("v5p:4x4x16"), PLACE)


@pytest.fixture
def machine(tmp_path):
  """Runs a worker's script as a TPU VM's shell would, with a `docker` that tells its arguments."""
  for name, body in {
    "sudo": 'exec "$@"',
    "gcloud": "echo token",
    "docker": 'if [ "$1" = login ]; then cat > token; fi; printf "%s\\0" "$@" END >> calls;\n'
    'if [ "$1" = run ]; then exit "$STATUS"; fi; if [ "$1" = rm ]; then exit 1; fi',
  }.items():
    (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name).chmod(0o755)

  def run(script: str, status: int = 0) -> tuple[int, list[list[str]]]:
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STATUS": str(status), "HOME": "/root"}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, check=False)
    calls, call = [], []
    for argument in (tmp_path / "calls").read_text().split("\0")[:-1]:
      if argument == "END":
        calls.append(call)
        call = []
      else:
        call.append(argument)
    return done.returncode, calls

  yield run
  assert not (tmp_path / "never").exists()


def test_hostile_arguments_reach_the_container_unchanged(machine):
  job = make_job(command=HOSTILE, env={"A": HOSTILE[2], "B": HOSTILE[3]})
  status, calls = machine(tpu_vm.worker_script(job))
  assert status == 0
  assert [call[0] for call in calls] == ["login", "pull", "rm", "run"]
  assert calls[0][-1] == "https://us-docker.pkg.dev"
  container = calls[-1]
  assert container[container.index(job.image) + 1 :] == list(HOSTILE)
  assert {f"--env={name}={value}" for name, value in job.env.items()} <= set(container)
  assert {"--privileged", "--network=host", "--name=my-run"} <= set(container)


def test_the_containers_status_is_the_machines(machine):
  assert machine(tpu_vm.worker_script(make_job()), STOPPED_STATUS)[0] == STOPPED_STATUS


def test_other_registries_need_no_login(machine):
  _, calls = machine(tpu_vm.worker_script(make_job(image="someone/slm_jax:1")))
  assert [call[0] for call in calls] == ["pull", "rm", "run"]


class FakeCloud(Runner):
  """A queued resource: `statuses` of the runs to come, and the states that follow a request and each run."""

  def __init__(self, statuses, *, state=None, granted=("ACCEPTED", "ACTIVE"), lost="SUSPENDED"):
    self.statuses, self.states = list(statuses), [state]
    self.granted, self.lost = granted, lost
    self.done: list[str] = []

  def run(self, command: Command) -> int:
    verb = command.args[4]
    self.done.append(verb)
    if verb == "create":
      assert self.states == [None], "asked for what is there already"
      self.states = list(self.granted)
    elif verb == "delete":
      self.states = [None]
    else:
      assert self.states == ["ACTIVE"], f"a run on machines that are {self.states}"
      status = self.statuses.pop(0)
      if status in (STOPPED_STATUS, 255):
        self.states = ["ACTIVE", "SUSPENDING", self.lost]
      return status
    return 0

  def read(self, command: Command) -> tuple[int, str, str]:
    assert command.args[4] == "describe"
    state = self.states[0]
    self.states = self.states[1:] or self.states
    return (1, "", "ERROR: NOT_FOUND: no such") if state is None else (0, f"{state}\n", "")


def finish(cloud: FakeCloud, *, keep=False, **changes) -> list[str]:
  notes: list[str] = []
  job = tpu_vm.QueuedJob(
    make_job(**changes), PLACE, cloud, note=notes.append, sleep=lambda seconds: None
  )
  job.finish(keep=keep)
  return notes


def test_an_undisturbed_job():
  cloud = FakeCloud([0])
  finish(cloud)
  assert cloud.done == ["create", "ssh", "delete"]


@pytest.mark.parametrize("status", [STOPPED_STATUS, 255])
def test_a_preempted_job_asks_again_and_runs_again(status):
  cloud = FakeCloud([status, status, 0])
  notes = finish(cloud)
  assert cloud.done == [
    "create",
    "ssh",
    "delete",
    "create",
    "ssh",
    "delete",
    "create",
    "ssh",
    "delete",
  ]
  assert sum("restart" in note for note in notes) == 2


def test_a_broken_connection_runs_again_on_the_same_machines():
  cloud = FakeCloud([255, 0], lost="ACTIVE")
  cloud.read = lambda command: (0, "ACTIVE\n", "")  # type: ignore[method-assign]
  cloud.states = ["ACTIVE"]
  run = cloud.run

  def reset(command: Command) -> int:
    cloud.states = ["ACTIVE"]
    return run(command)

  cloud.run = reset  # type: ignore[method-assign]
  finish(cloud)
  assert cloud.done == ["ssh", "ssh", "delete"]


def test_restarts_are_counted():
  cloud = FakeCloud([STOPPED_STATUS] * 3)
  with pytest.raises(UserError, match="more than 1 times"):
    finish(cloud, max_restarts=1)
  assert cloud.done.count("ssh") == 2 and cloud.done[-1] == "delete"


def test_a_failed_job_is_not_repeated_and_not_paid_for():
  cloud = FakeCloud([2, 0])
  with pytest.raises(UserError, match="failed with status 2"):
    finish(cloud)
  assert cloud.done == ["create", "ssh", "delete"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_what_an_earlier_request_left_is_cleared(state):
  cloud = FakeCloud([0], state=state)
  finish(cloud)
  assert cloud.done == ["delete", "create", "ssh", "delete"]


def test_kept_machines_are_used_again():
  cloud = FakeCloud([0], state="ACTIVE")
  notes = finish(cloud, keep=True)
  assert cloud.done == ["ssh"] and "paid for" in notes[-1]


def test_a_refused_request_is_an_error():
  cloud = FakeCloud([], granted=("ACCEPTED", "FAILED"))
  with pytest.raises(UserError, match="ended as FAILED"):
    finish(cloud)
  assert cloud.done == ["create", "delete"]


def test_gcloud_that_fails_is_not_taken_for_a_missing_request():
  cloud = FakeCloud([])
  cloud.read = lambda command: (1, "", "ERROR: You do not have an active account")  # type: ignore[method-assign]
  with pytest.raises(UserError, match="active account"):
    finish(cloud)
  assert "create" not in cloud.done


def test_shown_commands_are_what_a_shell_reads():
  command = tpu_vm.run(make_job(command=HOSTILE), PLACE)
  assert tuple(shlex.split(command.shown())) == command.args
