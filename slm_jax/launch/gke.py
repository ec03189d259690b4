"""A job on Google Kubernetes Engine: through xpk, or as a JobSet for kubectl.

The JobSet is that of cloud.google.com/tpu/docs/tpu-gke-multislice: a replicated job per slice, one
pod per host. GKE tells each pod of a slice who the others are, and JAX reads it. Pods get the same
rights and network as xpk's: the TPU's driver locks memory, and slices talk over the host's network.

Both start again whatever did not end well, up to `max_restarts` times, but not a user's mistake.
"""

import shlex

import yaml

from slm_jax.errors import UserError
from slm_jax.launch.commands import Command
from slm_jax.launch.job import GRACE_SECONDS, MISTAKE_STATUS, Job

PRIORITIES = ("very-low", "low", "medium", "high", "very-high")
# The smallest v5e slices of xpk's table are of 2x4.
_NOT_IN_XPK = ("v5litepod-1", "v5litepod-4")
# xpk itself starts again after 42 and 127 to 255; this is the rest but for `MISTAKE_STATUS`.
_RESTART_TOO = f"1-{MISTAKE_STATUS - 1},{MISTAKE_STATUS + 1}-126"
_CONTAINER = "slm-jax"


def _check_slices(job: Job) -> None:
  tpu = job.tpu_slice
  if job.num_slices > 1 and tpu.hosts == 1:
    raise UserError(
      f"{job.num_slices} slices of {tpu.chip}:{tpu.topology}: GKE joins slices of several hosts only; take a larger one"
    )


def _literal(text: str) -> str:
  """`text` so that Kubernetes, which replaces $(NAME) in commands and variables, leaves it as it is."""
  return text.replace("$", "$$")


def xpk_create(
  job: Job, *, cluster: str, priority: str | None, project: str | None, zone: str | None
) -> Command:
  """The workload through xpk; raises UserError for what xpk cannot take."""
  _check_slices(job)
  tpu = job.tpu_slice
  if tpu.accelerator_type in _NOT_IN_XPK:
    raise UserError(
      f"xpk knows no {tpu.accelerator_type} ({tpu.chip}:{tpu.topology}); take --target=jobset or a larger slice"
    )
  for name, value in job.env.items():
    # xpk writes values between double quotes, as they are.
    if '"' in value or "\\" in value:
      raise UserError(
        f"--env={name}: xpk takes no value with a double quote or a backslash; take --target=jobset"
      )
  # xpk has its own opinion which of several shapes v4-768 is; flat slices have one shape a size.
  kind = tpu.accelerator_type if len(tpu.shape) == 2 else f"{tpu.chip}-{tpu.topology}"
  # Its script runs the command in a subshell and sends SIGTERM to that alone: the job takes its place.
  line = f"exec {shlex.join(job.command)}"
  args = [
    "xpk",
    "workload",
    "create",
    f"--workload={job.name}",
    f"--cluster={cluster}",
    f"--tpu-type={kind}",
    f"--num-slices={job.num_slices}",
    f"--docker-image={job.image}",
    f"--command={_literal(line)}",
    f"--max-restarts={job.max_restarts}",
    f"--restart-on-exit-codes={_RESTART_TOO}",
    f"--termination-grace-period-seconds={GRACE_SECONDS}",
    *(f"--env={name}={_literal(value)}" for name, value in job.env.items()),
  ]
  args += [f"--priority={priority}"] if priority else []
  args += ["--spot"] if job.spot else []
  # It asks before it overwrites a workload of the same name.
  return Command(args=(*args, *_place(project, zone)), asks=True)


def xpk_delete(name: str, *, cluster: str, project: str | None, zone: str | None) -> Command:
  args = ("xpk", "workload", "delete", f"--workload={name}", f"--cluster={cluster}", "--force")
  return Command(args=(*args, *_place(project, zone)))


def _place(project: str | None, zone: str | None) -> list[str]:
  return [f"--{key}={value}" for key, value in (("project", project), ("zone", zone)) if value]


def jobset(job: Job, *, priority: str | None, service_account: str | None) -> dict:
  """The manifest (jobset.x-k8s.io/v1alpha2) as plain lists and dictionaries.

  Raises:
    UserError: slices that GKE cannot join.
  """
  _check_slices(job)
  tpu = job.tpu_slice
  container = {
    "name": _CONTAINER,
    "image": job.image,
    "command": [_literal(argument) for argument in job.command],
    "env": [{"name": name, "value": _literal(value)} for name, value in job.env.items()],
    "securityContext": {"privileged": True},
    "resources": {"limits": {"google.com/tpu": tpu.chips_per_host}},
  }
  selector = {
    "cloud.google.com/gke-tpu-accelerator": tpu.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": tpu.topology,
  }
  tolerated = ["google.com/tpu"]
  if job.spot:
    selector["cloud.google.com/gke-spot"] = "true"
    tolerated.append("cloud.google.com/gke-spot")
  pod = {
    "restartPolicy": "Never",
    "hostNetwork": True,
    "dnsPolicy": "ClusterFirstWithHostNet",
    "nodeSelector": selector,
    "tolerations": [{"key": key, "operator": "Exists"} for key in tolerated],
    "terminationGracePeriodSeconds": GRACE_SECONDS,
    "containers": [container],
  }
  if priority:
    pod["priorityClassName"] = priority
  if service_account:
    pod["serviceAccountName"] = service_account
  slices = {
    "name": "slice",
    "replicas": job.num_slices,
    "template": {
      "spec": {
        "parallelism": tpu.hosts,
        "completions": tpu.hosts,
        "completionMode": "Indexed",
        # One host that fails fails its slice, and with it the job: all start again together.
        "backoffLimit": 0,
        "podFailurePolicy": {
          "rules": [
            {
              "action": "FailJob",
              "onExitCodes": {
                "containerName": _CONTAINER,
                "operator": "In",
                "values": [MISTAKE_STATUS],
              },
            }
          ]
        },
        "template": {"spec": pod},
      }
    },
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": job.name,
      # A slice is a node pool of its own.
      "annotations": {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
      },
    },
    "spec": {
      "failurePolicy": {
        "maxRestarts": job.max_restarts,
        # A mistake in the config is one the next time, too.
        "rules": [
          {"name": "Mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        ],
      },
      "replicatedJobs": [slices],
    },
  }


def kubectl_create(job: Job, *, priority: str | None, service_account: str | None) -> Command:
  """The JobSet through kubectl, in its current context.

  A JobSet of that name that is there, also one that has ended, is an error: `apply` would pass over it in silence.
  """
  manifest = jobset(job, priority=priority, service_account=service_account)
  text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=10_000)
  return Command(args=("kubectl", "create", "--filename=-"), stdin=text)


def kubectl_delete(name: str) -> Command:
  return Command(args=("kubectl", "delete", "jobset", name))
