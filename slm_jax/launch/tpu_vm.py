"""A job on TPU VMs: a queued resource, and the job's container on each of its machines.

cloud.google.com/tpu/docs/queued-resources. Containers run on their own, whoever watches: a
connection that breaks costs nothing, and gcloud, which connects to a limited number of machines at
a time, reaches all before the job waits. A slice that was taken away is asked for again, and the
same command goes on from the last checkpoint in MODEL_DIR.
"""

import dataclasses
import shlex
import time
from collections.abc import Callable

from slm_jax.errors import UserError
from slm_jax.launch.commands import Command, Runner
from slm_jax.launch.job import GRACE_SECONDS, MISTAKE_STATUS, STOPPED_STATUS, Job

# ssh's own, and docker's for a container whose machine broke down.
_CONNECTION_LOST = 255
# How often it may be lost, after gcloud's own attempts to connect again.
_LOST_CONNECTIONS = 5
# Lines of a container's output that are shown when it is met again.
_TAIL = 200
_WAITING = (
  "STATE_UNSPECIFIED",
  "CREATING",
  "ACCEPTED",
  "PROVISIONING",
  "WAITING_FOR_RESOURCES",
  "SUSPENDING",
  "DELETING",
)
_POLL_SECONDS = 30
# A machine that is taken away is gone before its queued resource says so.
_LOSS_POLLS = 4


class _OutOfSight(UserError):
  """Nobody knows how the job is: nothing is to be deleted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where and how machines are asked for; `runtime_version` None: the one that suits the chip."""

  zone: str
  project: str | None = None
  runtime_version: str | None = None
  service_account: str | None = None
  reserved: bool = False


def _gcloud(verb: str, name: str, place: Place, *flags: str) -> Command:
  project = [f"--project={place.project}"] if place.project else []
  args = ("gcloud", "compute", "tpus", "queued-resources", verb, name, f"--zone={place.zone}")
  return Command(args=(*args, *project, *flags))


def create(job: Job, place: Place) -> Command:
  """Asks for the machines; raises UserError for a shape that cannot be asked for."""
  tpu = job.tpu_slice
  if tpu.is_default_shape:
    kind = [f"--accelerator-type={tpu.accelerator_type}"]
  elif tpu.chip == "v4":
    kind = ["--type=v4", f"--topology={tpu.topology}"]
  else:
    raise UserError(
      f"{tpu.accelerator_type} is another shape than {tpu.topology} to gcloud; take --target=xpk or jobset, "
      "or the shape nearest to a cube"
    )
  flags = [*kind, f"--runtime-version={place.runtime_version or tpu.runtime_version}"]
  if job.num_slices == 1:
    flags.append(f"--node-id={job.name}")
  else:
    flags += [f"--node-count={job.num_slices}", f"--node-prefix={job.name}"]
  flags += ["--spot"] if job.spot else []
  flags += ["--reserved"] if place.reserved else []
  flags += [f"--service-account={place.service_account}"] if place.service_account else []
  return _gcloud("create", job.name, place, *flags)


def describe(name: str, place: Place) -> Command:
  """Prints the state."""
  return _gcloud("describe", name, place, "--format=value(state.state)")


def delete(name: str, place: Place) -> Command:
  """Gives the machines back, and the request with them."""
  return _gcloud("delete", name, place, "--force", "--quiet")


def _on_machines(name: str, place: Place, script: str) -> Command:
  """Runs a script on all machines of all slices at once; fails if it does on one of them."""
  everywhere = ("--node=all", "--worker=all", "--batch-size=all")
  return _gcloud("ssh", name, place, *everywhere, f"--command={script}")


def fetch(job: Job, place: Place) -> Command:
  """Brings the image to the machines."""
  registry = job.image.partition("/")[0]
  steps = []
  if registry.endswith((".pkg.dev", "gcr.io")):
    login = ("--username=oauth2accesstoken", "--password-stdin", f"https://{registry}")
    steps.append(
      f"gcloud auth print-access-token | {shlex.join(('sudo', 'docker', 'login', *login))}"
    )
  steps.append(shlex.join(("sudo", "docker", "pull", job.image)))
  return _on_machines(job.name, place, " && ".join(steps))


def start(job: Job, place: Place) -> Command:
  """Starts the container, with a machine's chips and network, wherever it is not running; does not wait for it."""
  container = (
    *("sudo", "docker", "run", "--detach", "--init", "--privileged", "--network=host"),
    f"--name={job.name}",
    f"--stop-timeout={GRACE_SECONDS}",
    *(f"--env={name}={value}" for name, value in job.env.items()),
    job.image,
    *job.command,
  )
  inspect = ("sudo", "docker", "inspect", "--format={{.State.Running}}", job.name)
  script = (
    f'if [ "$({shlex.join(inspect)} 2>/dev/null)" = true ]; then echo {job.name} is running; '
    f"else {_removal(job.name)}; {shlex.join(container)}; fi"
  )
  return _on_machines(job.name, place, script)


def follow(name: str, place: Place) -> Command:
  """Shows what the containers print until they end; the exit status is that of one that did not end well."""
  logs = shlex.join(("sudo", "docker", "logs", "--follow", f"--tail={_TAIL}", name))
  script = (
    f"{logs}; status=$({shlex.join(('sudo', 'docker', 'wait', name))}); "
    # No container, or a machine that broke down under it: as after a preemption.
    f'case "${{status:-{_CONNECTION_LOST}}}" in {_CONNECTION_LOST}) exit {STOPPED_STATUS};; '
    '*) exit "$status";; esac'
  )
  return _on_machines(name, place, script)


def clear(name: str, place: Place) -> Command:
  """Ends and removes the containers."""
  return _on_machines(name, place, _removal(name))


def _removal(name: str) -> str:
  return f"{shlex.join(('sudo', 'docker', 'rm', '--force', name))} >/dev/null 2>&1 || true"


class QueuedJob:
  """Runs a job to its end on machines that may be taken away meanwhile."""

  def __init__(
    self,
    job: Job,
    place: Place,
    runner: Runner,
    *,
    note: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
  ):
    self._job, self._place, self._runner, self._note, self._sleep = job, place, runner, note, sleep

  def finish(self, *, keep: bool) -> None:
    """Asks for machines, runs, and starts again what did not end well.

    The machines are given back at the end, also after an error, unless `keep` or the job is out of
    sight. Machines of that name that are there already are used, and a job that runs there is
    followed.

    Raises:
      UserError: the request failed, the job made a mistake, ended badly too often, or is out of
        sight.
    """
    try:
      self._run_until_done()
    except (KeyboardInterrupt, _OutOfSight):
      self._note(
        f"{self._job.name} is left as it is: what is there goes on, and is paid for; the same command goes on "
        "watching it, --delete ends it"
      )
      raise
    except UserError:
      self._give_back(keep)
      raise
    self._give_back(keep)

  def _give_back(self, keep: bool) -> None:
    if keep:
      self._note(f"kept, and paid for: {self._job.name}; --delete gives it back")
    elif self._runner.run(delete(self._job.name, self._place)):
      self._note(f"{self._job.name} could not be deleted and may be paid for: see above")

  def _run_until_done(self) -> None:
    job = self._job
    for restart in range(job.max_restarts + 1):
      self._obtain()
      status = self._attempt(again=restart > 0)
      if status == 0:
        return
      if status == MISTAKE_STATUS:
        raise UserError(f"{job.name}: the job ended with status {status}, a mistake; see above")
      self._await_loss()
      self._note(
        f"{job.name} ended with status {status}; restart {restart + 1} of {job.max_restarts}"
      )
    raise UserError(
      f"{job.name} ended badly more than {job.max_restarts} times; the same command goes on from its last "
      "checkpoint, --max_restarts allows more"
    )

  def _attempt(self, *, again: bool) -> int:
    """Runs the job on machines that are there; its exit status."""
    job, place = self._job, self._place
    steps = [clear(job.name, place)] if again else []
    for step in (*steps, fetch(job, place), start(job, place)):
      if status := self._runner.run(step):
        if self._state() == "ACTIVE":
          raise UserError(
            f"{job.name} cannot be started on its machines: status {status}; see above"
          )
        return STOPPED_STATUS
    for _ in range(_LOST_CONNECTIONS):
      status = self._runner.run(follow(job.name, place))
      if status != _CONNECTION_LOST:
        return status
      if self._state() != "ACTIVE":
        return STOPPED_STATUS
      self._sleep(_POLL_SECONDS)
    raise _OutOfSight(f"{job.name}: there is no connection to some of its machines; see above")

  def _state(self) -> str | None:
    """The request's state; None if there is no such request."""
    status, output, errors = self._runner.read(describe(self._job.name, self._place))
    if status == 0:
      return output.strip()
    if "NOT_FOUND" in errors:
      return None
    raise _OutOfSight(f"{self._job.name}: gcloud cannot tell its state: {errors.strip()[:300]}")

  def _obtain(self) -> None:
    """Returns with active machines, whatever is there of an earlier request; raises UserError for a refused one."""
    state, asked = self._state(), False
    while state != "ACTIVE":
      if state is None:
        self._runner.check(create(self._job, self._place))
        asked = True
      elif state in _WAITING:
        self._sleep(_POLL_SECONDS)
      elif state == "SUSPENDED" or not asked:
        # What is left of an earlier request stands in the way of a new one.
        self._runner.check(delete(self._job.name, self._place))
      else:
        raise UserError(f"{self._job.name}: the request for machines ended as {state}")
      previous, state = state, self._state()
      if state != previous:
        self._note(f"{self._job.name}: {state or 'no request'}")

  def _await_loss(self) -> None:
    """Waits a little for a preemption to show, so that no new start meets machines that are about to go."""
    for _ in range(_LOSS_POLLS):
      if self._state() != "ACTIVE":
        return
      self._sleep(_POLL_SECONDS)
