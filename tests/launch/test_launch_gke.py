"""Jobs on GKE: the JobSet against the constraints of its schema, xpk's command line, and what a shell makes of both."""

import dataclasses
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from slm_jax.errors import UserError
from slm_jax.launch.gke import jobset, kubectl_create, xpk_create, xpk_delete
from slm_jax.launch.job import MISTAKE_STATUS, STOPPED_STATUS, Job
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
TEXTS = {"*": str}
# Of jobset.x-k8s.io/v1alpha2 and batch/v1: the fields that are used, and what they hold. [x] is a
# list of x, a set the values that are allowed. Fields are required unless named here.
OPTIONAL = {"priorityClassName", "serviceAccountName"}
EXIT_CODES = {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]}
CONTAINER = {
  "name": str,
  "image": str,
  "command": [str],
  "env": [{"name": str, "value": str}],
  "securityContext": {"privileged": bool},
  "resources": {"limits": {"google.com/tpu": int}},
}
POD = {
  "restartPolicy": {"Never", "OnFailure", "Always"},
  "hostNetwork": bool,
  "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
  "nodeSelector": TEXTS,
  "tolerations": [{"key": str, "operator": {"Exists", "Equal"}}],
  "terminationGracePeriodSeconds": int,
  "priorityClassName": str,
  "serviceAccountName": str,
  "containers": [CONTAINER],
}
JOB = {
  "parallelism": int,
  "completions": int,
  "completionMode": {"Indexed", "NonIndexed"},
  "backoffLimit": int,
  "podFailurePolicy": {
    "rules": [{"action": {"FailJob", "Ignore", "Count"}, "onExitCodes": EXIT_CODES}]
  },
  "template": {"spec": POD},
}
JOBSET = {
  "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
  "kind": {"JobSet"},
  "metadata": {"name": str, "annotations": TEXTS},
  "spec": {
    "failurePolicy": {
      "maxRestarts": int,
      "rules": [
        {
          "name": str,
          "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
          "onJobFailureReasons": [
            {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy", "FailedIndexes"}
          ],
        }
      ],
    },
    "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
  },
}


def mismatches(value, schema, where="") -> list[str]:
  """Where `value` is not as `schema`, a server would refuse it or, worse, drop the field."""
  if isinstance(schema, dict):
    if not isinstance(value, dict):
      return [f"{where} is no mapping"]
    known = {key: schema.get(key, schema.get("*")) for key in value}
    found = [f"{where}.{key} is unknown" for key, field in known.items() if field is None]
    found += [
      f"{where}.{key} is missing" for key in schema.keys() - value.keys() - OPTIONAL - {"*"}
    ]
    for key, field in known.items():
      found += mismatches(value[key], field, f"{where}.{key}") if field is not None else []
    return found
  if isinstance(schema, list):
    if not isinstance(value, list):
      return [f"{where} is no list"]
    return [line for i, x in enumerate(value) for line in mismatches(x, schema[0], f"{where}[{i}]")]
  fits = value in schema if isinstance(schema, set) else type(value) is schema
  return [] if fits else [f"{where} is {value!r}"]


def make_job(topology="v5e:4x4", **changes) -> Job:
  fields = {"name": "my-run", "image": "us-docker.pkg.dev/p/r/slm_jax:1", "command": COMMAND}
  return Job(tpu_slice=parse_slice(topology), **(fields | changes))


def applied(job: Job, **options) -> dict:
  """The manifest as kubectl reads it."""
  command = kubectl_create(job, **({"priority": None, "service_account": None} | options))
  # `apply` would pass over a JobSet of that name that has ended.
  assert command.args == ("kubectl", "create", "--filename=-")
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
  assert mismatches(manifest, JOBSET) == []
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


def test_the_schema_finds_what_a_server_would_refuse():
  manifest = jobset(make_job(), priority=None, service_account=None)
  pod_of(manifest)["containers"][0]["resources"]["limits"]["google.com/tpu"] = "4"
  pod_of(manifest)["hostnetwork"] = True
  manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "FailJob"
  del manifest["spec"]["failurePolicy"]["rules"][0]["name"]
  assert [line.rpartition(".")[2] for line in mismatches(manifest, JOBSET)] == [
    "name is missing",
    "action is 'FailJob'",
    "hostnetwork is unknown",
    "com/tpu is '4'",
  ]


def after(status: int, manifest: dict) -> str:
  """What the controllers of Job and JobSet do when a host's container ends with `status`, and is not 0."""
  spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  reason = "BackoffLimitExceeded" if spec["backoffLimit"] == 0 else None
  for rule in spec["podFailurePolicy"]["rules"]:
    codes = rule["onExitCodes"]
    if (status in codes["values"]) == (codes["operator"] == "In"):
      assert rule["action"] == "FailJob"
      reason = "PodFailurePolicy"
  for rule in manifest["spec"]["failurePolicy"]["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"]
  return "RestartJobSet"


@pytest.mark.parametrize("status", [1, 42, 134, 137, STOPPED_STATUS, 255])
def test_what_did_not_end_well_starts_again(status):
  # 143 is a preempted run that was saved, 1 that of hosts which lost another, 137 a killed one.
  assert after(status, applied(make_job())) == "RestartJobSet"


def test_a_mistake_ends_the_job():
  assert after(MISTAKE_STATUS, applied(make_job())) == "FailJobSet"


def test_xpk_hands_sigterm_to_the_job(tmp_path):
  saving = tmp_path / "saving.py"
  saving.write_text(
    "import signal, sys, time\n"
    f"signal.signal(signal.SIGTERM, lambda *args: (print('saved'), sys.exit({STOPPED_STATUS})))\n"
    "print('started', flush=True)\n"
    "time.sleep(30)\n"
  )
  (command,) = flags_of(xpk(make_job(command=(sys.executable, str(saving)))))["--command"]
  # As xpk has it: the command is a background job of bash, which passes SIGTERM to that process alone.
  script = (
    f"trap 'kill -TERM $PID' TERM; ({expand(command, {})}) & PID=$!; wait $PID; wait $PID; exit $?"
  )
  bash = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
  assert bash.stdout is not None and bash.stdout.readline() == "started\n"
  bash.send_signal(signal.SIGTERM)
  assert bash.communicate(timeout=20)[0] == "saved\n"
  assert bash.returncode == STOPPED_STATUS


def test_jobset_leaves_out_what_is_not_asked_for():
  pod = pod_of(applied(make_job()))
  assert not {"priorityClassName", "serviceAccountName"} & set(pod)
  spot = pod_of(applied(make_job(spot=True)))
  # Node labels are strings: a bare true would be refused.
  assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  assert {"key": "cloud.google.com/gke-spot", "operator": "Exists"} in spot["tolerations"]


def test_hostile_arguments_reach_the_jobset_container_unchanged():
  job = make_job(command=HOSTILE, env={f"V{i}": text for i, text in enumerate(HOSTILE)})
  container = pod_of(applied(job))["containers"][0]
  variables = {"HOME": "/root", **{entry["name"]: entry["value"] for entry in container["env"]}}
  assert tuple(expand(argument, variables) for argument in container["command"]) == HOSTILE
  found = {entry["name"]: expand(entry["value"], variables) for entry in container["env"]}
  assert found == job.env


def test_shown_kubectl_command_is_the_command(tmp_path):
  command = kubectl_create(make_job(command=HOSTILE), priority=None, service_account=None)
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
  assert flags.pop("--command") == [f"exec {shlex.join(COMMAND)}"]
  assert flags == {
    "--workload": ["my-run"],
    "--cluster": ["pods"],
    "--tpu-type": ["v4-4x4x4"],
    "--num-slices": ["2"],
    "--docker-image": ["us-docker.pkg.dev/p/r/slm_jax:1"],
    "--max-restarts": ["3"],
    "--restart-on-exit-codes": ["1-1,3-126"],
    "--termination-grace-period-seconds": ["300"],
    "--env": ["A=1", "B=x y"],
    "--priority": ["high"],
    "--spot": [""],
    "--project": ["p"],
    "--zone": ["us-central2-b"],
  }
  # v4-768 would be 4x4x24 to xpk, and 4x8x12 to the cloud.
  assert xpk(make_job("v4:4x8x12"))[5] == "--tpu-type=v4-4x8x12"
  assert xpk(make_job("v5e:4x4"))[5] == "--tpu-type=v5litepod-16"
  deletion = xpk_delete("my-run", cluster="pods", project="p", zone=None)
  assert deletion.args[:3] == ("xpk", "workload", "delete") and "--force" in deletion.args


def test_hostile_arguments_pass_xpk_and_bash(tmp_path):
  # An echo that is a program: `exec` takes no builtin.
  show = "import sys; print(*sys.argv[1:], sep=chr(0), end=chr(0))"
  job = make_job(command=(sys.executable, "-c", show, *HOSTILE))
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
