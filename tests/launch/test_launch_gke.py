"""Jobs on GKE: the JobSet against the constraints of its schema, xpk's command line, and what a shell makes of both."""

import dataclasses
import re
import shlex
import subprocess

import pytest
import yaml

from slm_jax.errors import UserError
from slm_jax.launch.gke import jobset, kubectl_apply, xpk_create, xpk_delete
from slm_jax.launch.job import Job
from slm_jax.launch.tpu_slice import parse_slice

HOSTILE = (
  "plain",
  "two words",
  "it's \"quoted\" 'twice'",
  "$(touch /tmp/never) `touch /tmp/never` ${HOME} $HOME $$ $$(HOME)",
  "; touch /tmp/never & | > < * ? [a] ~ # ! \\ \\n %s {x}",
  "'; touch /tmp/never; '",
  "--flag=value",
  "",
  "übergröße 音声",
  'key: [yaml, - "list"] # no comment',
)
COMMAND = ("slm_jax", "train", "--gin.MODEL_DIR='gs://bucket/run'")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def make_job(topology="v5e:4x4", **changes) -> Job:
  fields = {"name": "my-run", "image": "us-docker.pkg.dev/p/r/slm_jax:1", "command": COMMAND}
  return Job(tpu_slice=parse_slice(topology), **(fields | changes))


def applied(job: Job, **options) -> dict:
  """The manifest as kubectl reads it."""
  command = kubectl_apply(job, **({"priority": None, "service_account": None} | options))
  assert command.args == ("kubectl", "apply", "--filename=-")
  assert command.stdin is not None
  return yaml.safe_load(command.stdin)


def expand(text: str, variables: dict[str, str]) -> str:
  """What Kubernetes makes of a command's argument: $(NAME) is replaced if it is known, and $$ is $."""

  def replace(found: re.Match[str]) -> str:
    whole, name = str(found[0]), found[1]
    return "$" if name is None else variables.get(str(name), whole)

  return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


def pod_of(manifest: dict) -> dict:
  return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
  ("topology", "slices"),
  [("v4:2x2x4", 1), ("v5e:1x1", 1), ("v5e:4x4", 2), ("v5p:4x4x4", 4), ("v6e:16x16", 1)],
)
def test_jobset_meets_its_schema(topology, slices):
  job = make_job(topology, num_slices=slices, env={"A_B": "1"}, max_restarts=7)
  manifest = applied(job, priority="high", service_account="trainer")
  assert manifest == jobset(job, priority="high", service_account="trainer")
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
  assert LABEL.fullmatch(manifest["metadata"]["name"])
  for key, value in manifest["metadata"]["annotations"].items():
    assert LABEL.fullmatch(key.split("/")[1]) and isinstance(value, str)
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
  (replicated,) = manifest["spec"]["replicatedJobs"]
  tpu = job.tpu_slice
  assert replicated["replicas"] == slices and LABEL.fullmatch(replicated["name"])
  # The longest name of a pod: JobSet appends slice and host, the job controller a hash of five.
  longest = f"{job.name}-{replicated['name']}-{slices - 1}-{tpu.hosts - 1}-xxxxx"
  assert len(longest) <= 63
  spec = replicated["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == tpu.hosts
  assert spec["backoffLimit"] == 0 and spec["completionMode"] == "Indexed"
  pod = pod_of(manifest)
  # A pod failure policy is accepted for pods that are never restarted, and names one of their containers.
  assert pod["restartPolicy"] == "Never"
  (container,) = pod["containers"]
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert rule["onExitCodes"]["operator"] == "In" and 0 not in rule["onExitCodes"]["values"]
  assert LABEL.fullmatch(container["name"])
  assert container["resources"]["limits"] == {"google.com/tpu": tpu.chips_per_host}
  assert tpu.chips_per_host * spec["parallelism"] == tpu.chips
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": tpu.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": tpu.topology,
  }
  assert container["env"] == [{"name": "A_B", "value": "1"}]
  assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("high", "trainer")


def test_jobset_leaves_out_what_is_not_asked_for():
  pod = pod_of(applied(make_job()))
  assert not {"priorityClassName", "serviceAccountName"} & set(pod)
  spot = pod_of(applied(make_job(spot=True)))
  # Node labels are strings: a bare true would be refused.
  assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_hostile_arguments_reach_the_jobset_container_unchanged():
  job = make_job(command=HOSTILE, env={f"V{i}": text for i, text in enumerate(HOSTILE)})
  container = pod_of(applied(job))["containers"][0]
  variables = {"HOME": "/root", **{entry["name"]: entry["value"] for entry in container["env"]}}
  assert tuple(expand(argument, variables) for argument in container["command"]) == HOSTILE
  found = {entry["name"]: expand(entry["value"], variables) for entry in container["env"]}
  assert found == job.env


def test_shown_kubectl_command_is_the_command(tmp_path):
  command = kubectl_apply(make_job(command=HOSTILE), priority=None, service_account=None)
  fake = tmp_path / "kubectl"
  fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >&2\ncat\n')
  fake.chmod(0o755)
  done = subprocess.run(
    ["sh", "-c", command.shown()],
    env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == command.stdin
  assert tuple(done.stderr.splitlines()) == command.args[1:]


def flags_of(args: tuple[str, ...]) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for argument in args:
    if argument.startswith("--"):
      name, _, value = argument.partition("=")
      found.setdefault(name, []).append(value)
  return found


def xpk(job: Job, **options) -> tuple[str, ...]:
  defaults = {"cluster": "pods", "priority": None, "project": None, "zone": None}
  return xpk_create(job, **(defaults | options)).args


def test_xpk_gets_the_job():
  job = make_job("v4:4x4x4", num_slices=2, spot=True, env={"A": "1", "B": "x y"})
  args = xpk(job, priority="high", project="p", zone="us-central2-b")
  assert args[:3] == ("xpk", "workload", "create")
  flags = flags_of(args)
  assert flags.pop("--command") == [shlex.join(COMMAND)]
  assert flags == {
    "--workload": ["my-run"],
    "--cluster": ["pods"],
    "--tpu-type": ["v4-128"],
    "--num-slices": ["2"],
    "--docker-image": ["us-docker.pkg.dev/p/r/slm_jax:1"],
    "--max-restarts": ["3"],
    "--termination-grace-period-seconds": ["300"],
    "--env": ["A=1", "B=x y"],
    "--priority": ["high"],
    "--spot": [""],
    "--project": ["p"],
    "--zone": ["us-central2-b"],
  }
  assert xpk(make_job("v4:4x4x16"))[5] == "--tpu-type=v4-4x4x16"
  deletion = xpk_delete("my-run", cluster="pods", project="p", zone=None)
  assert deletion.args[:3] == ("xpk", "workload", "delete") and "--force" in deletion.args


def test_hostile_arguments_pass_xpk_and_bash(tmp_path):
  job = make_job(command=("printf", "%s\\0", *HOSTILE))
  (command,) = flags_of(xpk(job))["--command"]
  # xpk puts the command into a script of bash, and that into the container's command.
  script = expand(f"({command}) & PID=$!; wait $PID", {"HOME": "/root"})
  done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, check=True)
  assert tuple(done.stdout.decode().split("\0")[:-1]) == HOSTILE


def test_slices_of_one_host_are_not_joined():
  job = make_job("v4:2x2x1", num_slices=2)
  with pytest.raises(UserError, match="several hosts"):
    xpk(job)
  with pytest.raises(UserError, match="several hosts"):
    applied(job)
  assert xpk(dataclasses.replace(job, num_slices=1))


def test_what_xpk_cannot_take_is_refused():
  with pytest.raises(UserError, match="jobset"):
    xpk(make_job("v5e:2x2"))
  with pytest.raises(UserError, match="--env=A"):
    xpk(make_job(env={"A": 'say "yes"'}))


@pytest.mark.parametrize(
  "changes",
  [
    {"name": "Upper"},
    {"name": "-first"},
    {"name": "last-"},
    {"name": "9first"},
    {"name": "under_score"},
    {"name": "x" * 41},
    {"name": "a;b"},
    {"name": ""},
    {"image": "image; rm"},
    {"image": "--privileged"},
    {"image": ""},
    {"command": ("a\nb",)},
    {"env": {"A": "a\x00b"}},
    {"env": {"A-B": "1"}},
    {"env": {"1A": "1"}},
    {"num_slices": 0},
    {"max_restarts": -1},
  ],
  ids=str,
)
def test_a_job_that_no_service_takes_is_refused(changes):
  with pytest.raises(ValueError, match="expected|control character"):
    make_job(**changes)


def test_a_job_cannot_change():
  with pytest.raises(dataclasses.FrozenInstanceError):
    make_job().name = "other"  # pyright: ignore[reportAttributeAccessIssue]
