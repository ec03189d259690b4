"""A job on TPU VMs: a queued resource, and the job's container on each of its machines.

cloud.google.com/tpu/docs/queued-resources. A slice that was taken away is asked for again, and the
same command goes on from the last checkpoint in MODEL_DIR.
"""

import dataclasses
import shlex
import time
from collections.abc import Callable

from slm_jax.errors import UserError
from slm_jax.launch.commands import Command, Runner
from slm_jax.launch.job import GRACE_SECONDS, STOPPED_STATUS, Job

# ssh's own: the connection broke, which may be the machine's end.
_CONNECTION_LOST = 255
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


def run(job: Job, place: Place) -> Command:
  """Runs the container on all machines of all slices, until it ends on all."""
  return _gcloud(
    "ssh", job.name, place, "--node=all", "--worker=all", f"--command={worker_script(job)}"
  )


def worker_script(job: Job) -> str:
  """What the shell of each machine is given: it fetches the image and runs it with the chips and the host's network.

  Its exit status is the container's.
  """
  registry = job.image.partition("/")[0]
  steps = []
  if registry.endswith((".pkg.dev", "gcr.io")):
    login = ("--username=oauth2accesstoken", "--password-stdin", f"https://{registry}")
    steps.append(
      f"gcloud auth print-access-token | {shlex.join(('sudo', 'docker', 'login', *login))}"
    )
  steps.append(shlex.join(("sudo", "docker", "pull", job.image)))
  # Of an earlier start whose connection broke: the chips have room for one.
  steps.append(
    f"({shlex.join(('sudo', 'docker', 'rm', '--force', job.name))} >/dev/null 2>&1 || true)"
  )
  container = [
    *("sudo", "docker", "run", "--rm", "--init", "--privileged", "--network=host"),
    f"--name={job.name}",
    f"--stop-timeout={GRACE_SECONDS}",
    *(f"--env={name}={value}" for name, value in job.env.items()),
    job.image,
    *job.command,
  ]
  steps.append(shlex.join(container))
  return " && ".join(steps)


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
    """Asks for machines, runs, and starts again after a preemption.

    The machines are given back at the end, also after an error, unless `keep`. Machines of that
    name that are there already are used.

    Raises:
      UserError: the request failed, the job failed, or it was stopped more often than it may.
    """
    try:
      self._run_until_done()
    except KeyboardInterrupt:
      self._note(f"still there, and paid for: {self._job.name}; --delete gives it back")
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
    for restart in range(self._job.max_restarts + 1):
      self._obtain()
      status = self._runner.run(run(self._job, self._place))
      if status == 0:
        return
      if status not in (STOPPED_STATUS, _CONNECTION_LOST) and self._state() == "ACTIVE":
        raise UserError(f"{self._job.name}: the job failed with status {status}; see above")
      self._await_loss()
      self._note(
        f"{self._job.name} was stopped (status {status}); restart {restart + 1} of {self._job.max_restarts}"
      )
    raise UserError(
      f"{self._job.name} was stopped more than {self._job.max_restarts} times; the same command goes on from "
      "its last checkpoint, --max_restarts allows more"
    )

  def _state(self) -> str | None:
    """The request's state; None if there is no such request."""
    status, output, errors = self._runner.read(describe(self._job.name, self._place))
    if status == 0:
      return output.strip()
    if "NOT_FOUND" in errors:
      return None
    raise UserError(f"{self._job.name}: gcloud cannot tell its state: {errors.strip()[:300]}")

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
