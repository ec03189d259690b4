"""Jobs on TPU VMs: the commands, what the machines' shell makes of them, and resuming after a preemption."""

import shlex
import subprocess

import pytest

from slm_jax.errors import UserError
from slm_jax.launch import tpu_vm
from slm_jax.launch.commands import Command, Runner
from slm_jax.launch.job import MISTAKE_STATUS, STOPPED_STATUS, Job
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
  # gcloud connects to 64 machines at a time, unless told otherwise.
  everywhere = ("--node=all", "--worker=all", "--batch-size=all")
  steps = (
    tpu_vm.fetch(job, PLACE),
    tpu_vm.start(job, PLACE),
    tpu_vm.follow("my-run", PLACE),
    tpu_vm.clear("my-run", PLACE),
  )
  for step in steps:
    *args, script = step.args
    assert tuple(args) == (*start, "ssh", "my-run", *where, *everywhere)
    assert script.startswith("--command=")


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


class Machine:
  """Runs scripts as a TPU VM's shell would, with a `docker` that tells its arguments.

  `running` is the state of the container ("" if there is none), `status` what it ends with.
  """

  def __init__(self, folder):
    self.running, self.status = "", 0
    self._folder = folder
    docker = """
      printf "%s\\0" "$@" END >> calls
      case "$1" in
        login) cat > token;;
        inspect) [ -n "$RUNNING" ] && echo "$RUNNING";;
        rm) [ -n "$RUNNING" ];;
        wait) [ -n "$STATUS" ] && echo "$STATUS";;
        logs) echo printed;;
      esac"""
    programs = {"sudo": 'exec "$@"', "gcloud": "echo token", "docker": docker}
    for name, body in programs.items():
      (folder / name).write_text(f"#!/bin/sh\n{body}\n")
      (folder / name).chmod(0o755)

  def __call__(self, command: Command) -> tuple[int, list[list[str]]]:
    """The exit status of a command's script, and what docker was told meanwhile."""
    script = command.args[-1].removeprefix("--command=")
    environment = {
      "PATH": f"{self._folder}:/usr/bin:/bin",
      "STATUS": str(self.status),
      "RUNNING": self.running,
      "HOME": "/root",
    }
    (self._folder / "calls").write_text("")
    done = subprocess.run(["sh", "-c", script], cwd=self._folder, env=environment, check=False)
    calls, call = [], []
    for argument in (self._folder / "calls").read_text().split("\0")[:-1]:
      if argument == "END":
        calls.append(call)
        call = []
      else:
        call.append(argument)
    return done.returncode, calls


@pytest.fixture
def machine(tmp_path):
  yield Machine(tmp_path)
  assert not (tmp_path / "never").exists()


def test_hostile_arguments_reach_the_container_unchanged(machine):
  job = make_job(command=HOSTILE, env={"A": HOSTILE[2], "B": HOSTILE[3]})
  status, calls = machine(tpu_vm.start(job, PLACE))
  assert status == 0
  container = calls[-1]
  assert container[:2] == ["run", "--detach"]
  assert container[container.index(job.image) + 1 :] == list(HOSTILE)
  assert {f"--env={name}={value}" for name, value in job.env.items()} <= set(container)
  assert {"--privileged", "--network=host", "--name=my-run"} <= set(container)


@pytest.mark.parametrize("running", ["", "false", "true"])
def test_a_container_that_runs_is_left_alone(running, machine):
  machine.running = running
  status, calls = machine(tpu_vm.start(make_job(), PLACE))
  assert status == 0
  expected = ["inspect"] if running == "true" else ["inspect", "rm", "run"]
  assert [call[0] for call in calls] == expected


def test_the_image_is_fetched_with_the_machines_own_rights(machine):
  status, calls = machine(tpu_vm.fetch(make_job(), PLACE))
  assert status == 0 and [call[0] for call in calls] == ["login", "pull"]
  assert calls[0][-1] == "https://us-docker.pkg.dev"
  _, calls = machine(tpu_vm.fetch(make_job(image="someone/slm_jax:1"), PLACE))
  assert [call[0] for call in calls] == ["pull"]


@pytest.mark.parametrize(
  ("ended", "status"),
  [(0, 0), (1, 1), (MISTAKE_STATUS, MISTAKE_STATUS), (STOPPED_STATUS, STOPPED_STATUS), (137, 137)],
)
def test_the_containers_status_is_the_machines(ended, status, machine):
  machine.status = ended
  assert machine(tpu_vm.follow("my-run", PLACE))[0] == status


@pytest.mark.parametrize("ended", ["", 255])
def test_a_container_that_was_lost_with_its_machine_counts_as_stopped(ended, machine):
  # 255 would be taken for a connection that broke, and the job be followed for ever.
  machine.status = ended
  assert machine(tpu_vm.follow("my-run", PLACE))[0] == STOPPED_STATUS


@pytest.mark.parametrize("running", ["", "true"])
def test_clearing_never_fails(running, machine):
  machine.running = running
  assert machine(tpu_vm.clear("my-run", PLACE)) == (0, [["rm", "--force", "my-run"]])


STEPS = ("clear", "fetch", "start", "follow")


class FakeCloud(Runner):
  """A queued resource: `statuses` of the runs to come, and the states that follow a request and each run."""

  def __init__(self, statuses, *, state=None, granted=("ACCEPTED", "ACTIVE"), lost="SUSPENDED"):
    self.statuses, self.states = list(statuses), [state]
    self.granted, self.lost = granted, lost
    self.broken: dict[str, int] = {}
    self.done: list[str] = []

  def run(self, command: Command) -> int:
    verb = command.args[4]
    if verb == "ssh":
      verb = next(step for step in STEPS if script_of(step) == command.args[-1])
    self.done.append(verb)
    if verb == "create":
      assert self.states == [None], "asked for what is there already"
      self.states = list(self.granted)
    elif verb == "delete":
      self.states = [None]
    else:
      assert self.states == ["ACTIVE"], f"{verb} on machines that are {self.states}"
      if verb in self.broken:
        return self.broken[verb]
    if verb == "follow":
      status = self.statuses.pop(0)
      if status == STOPPED_STATUS:
        self.states = ["ACTIVE", "SUSPENDING", self.lost]
      return status
    return 0

  def read(self, command: Command) -> tuple[int, str, str]:
    assert command.args[4] == "describe"
    state = self.states[0]
    self.states = self.states[1:] or self.states
    return (1, "", "ERROR: NOT_FOUND: no such") if state is None else (0, f"{state}\n", "")


def script_of(step: str) -> str:
  """The last argument of a step of `make_job()`."""
  job = make_job()
  command = {
    "clear": tpu_vm.clear(job.name, PLACE),
    "fetch": tpu_vm.fetch(job, PLACE),
    "start": tpu_vm.start(job, PLACE),
    "follow": tpu_vm.follow(job.name, PLACE),
  }[step]
  return command.args[-1]


def finish(cloud: FakeCloud, *, keep=False, notes=None, **changes) -> list[str]:
  notes = [] if notes is None else notes
  job = tpu_vm.QueuedJob(
    make_job(**changes), PLACE, cloud, note=notes.append, sleep=lambda seconds: None
  )
  job.finish(keep=keep)
  return notes


RUN = ["fetch", "start", "follow"]


def test_an_undisturbed_job():
  cloud = FakeCloud([0])
  finish(cloud)
  assert cloud.done == ["create", *RUN, "delete"]


def test_a_preempted_job_asks_again_and_runs_again():
  cloud = FakeCloud([STOPPED_STATUS, STOPPED_STATUS, 0])
  notes = finish(cloud)
  again = ["delete", "create", "clear", *RUN]
  assert cloud.done == ["create", *RUN, *again, *again, "delete"]
  assert sum("restart" in note for note in notes) == 2


@pytest.mark.parametrize("status", [1, 134, 137])
def test_a_job_that_crashed_runs_again_on_the_same_machines(status):
  # Where one host's process is killed, the others end with 1.
  cloud = FakeCloud([status, 0])
  finish(cloud)
  assert cloud.done == ["create", *RUN, "clear", *RUN, "delete"]


def test_a_broken_connection_leaves_the_job_alone():
  cloud = FakeCloud([255, 255, 0])
  notes = finish(cloud)
  assert cloud.done == ["create", *RUN, "follow", "follow", "delete"]
  assert not any("restart" in note for note in notes)


def test_a_connection_that_stays_broken_deletes_nothing():
  cloud = FakeCloud([255] * 100)
  with pytest.raises(UserError, match="no connection"):
    finish(cloud)
  assert "delete" not in cloud.done and cloud.done.count("follow") < 10


def test_watching_that_is_interrupted_deletes_nothing():
  cloud = FakeCloud([])
  cloud.statuses = Interrupting()
  notes: list[str] = []
  with pytest.raises(KeyboardInterrupt):
    finish(cloud, notes=notes)
  assert cloud.done == ["create", *RUN] and "--delete" in notes[-1]


class Interrupting(list):
  """In place of the statuses: Ctrl-C."""

  def pop(self, index=-1):
    raise KeyboardInterrupt


def test_restarts_are_counted():
  cloud = FakeCloud([STOPPED_STATUS] * 3)
  with pytest.raises(UserError, match="more than 1 times"):
    finish(cloud, max_restarts=1)
  assert cloud.done.count("follow") == 2 and cloud.done[-1] == "delete"


def test_a_mistake_is_not_repeated_and_not_paid_for():
  cloud = FakeCloud([MISTAKE_STATUS, 0])
  with pytest.raises(UserError, match="status 2, a mistake"):
    finish(cloud)
  assert cloud.done == ["create", *RUN, "delete"]


@pytest.mark.parametrize("step", ["fetch", "start"])
def test_a_job_that_cannot_be_started_is_not_paid_for(step):
  cloud = FakeCloud([])
  cloud.broken = {step: 1}
  with pytest.raises(UserError, match="cannot be started"):
    finish(cloud)
  assert cloud.done[-2:] == [step, "delete"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_what_an_earlier_request_left_is_cleared(state):
  cloud = FakeCloud([0], state=state)
  finish(cloud)
  assert cloud.done == ["delete", "create", *RUN, "delete"]


def test_kept_machines_are_used_again():
  cloud = FakeCloud([0], state="ACTIVE")
  notes = finish(cloud, keep=True)
  assert cloud.done == RUN and "paid for" in notes[-1]


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
  assert not cloud.done


def test_shown_commands_are_what_a_shell_reads():
  command = tpu_vm.start(make_job(command=HOSTILE), PLACE)
  assert tuple(shlex.split(command.shown())) == command.args
