"""The printed xpk commands, read by xpk's own parser."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slm_jax.cli.main import main
from slm_jax.launch.gke import PRIORITIES
from slm_jax.launch.job import GRACE_SECONDS, MISTAKE_STATUS
from slm_jax.launch.tpu_slice import parse_slice

XPK = Path(sys.prefix) / "xpk"
RUN = ["--gin_file=experiments/mini.gin", "--gin.MODEL_DIR='gs://my-bucket/a run'"]
JOB = ["--target=xpk", "--cluster=pods", "--name=my-run"]
CREATE = [*JOB, "--image=us-docker.pkg.dev/p/r/slm_jax:1", "--skip_preflight", *RUN]
# Every flat shape but the one and four chips that xpk does not know, and some of the cubes.
SLICES = [
  *(f"{c}:{s}" for c in ("v5e", "v6e") for s in ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
  *(f"{c}:{s}" for c in ("v4", "v5p") for s in ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
  *(f"{c}:{s}" for c in ("v4", "v5p") for s in ("4x4x8", "4x8x8", "8x8x8", "4x8x12", "8x8x16")),
]


def printed(capsys, *flags: str) -> list[str]:
  """Arguments of the one command that `slm_jax launch` prints."""
  assert main(["launch", "--dry_run", *flags]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  program, *arguments = shlex.split(line)
  assert program == "xpk"
  return arguments


def read_by_xpk(*commands: list[str]) -> list[dict]:
  """What xpk understands; raises AssertionError with its message where it does not."""
  assert XPK.is_dir(), f"{XPK} is missing: run `make test`"
  done = subprocess.run(
    [sys.executable, str(Path(__file__).with_name("xpk_parser.py")), str(XPK)],
    input=json.dumps(commands),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_a_workload_is_what_was_asked_for(capsys):
  flags = ["--topology=v5p:4x4x8", "--num_slices=2", "--spot", "--max_restarts=7"]
  flags += ["--priority=high", "--project=p", "--zone=us-east5-a", "--env=A=1", "--env=B=x $y 'z'"]
  arguments = printed(capsys, *CREATE, *flags)
  (read,) = read_by_xpk(arguments)
  job = read["command"]
  wanted = {
    "func": "workload_create",
    "workload": "my-run",
    "cluster": "pods",
    "docker_image": "us-docker.pkg.dev/p/r/slm_jax:1",
    "tpu_type": "v5p-4x4x8",
    "num_slices": 2,
    "spot": True,
    "max_restarts": "7",
    "priority": "high",
    "project": "p",
    "zone": "us-east5-a",
    "termination_grace_period_seconds": str(GRACE_SECONDS),
    # Kubernetes reads $$ as $.
    "env": ["A=1", "B=x $$y 'z'"],
  }
  assert {name: read[name] for name in wanted} == wanted
  assert f"--command={job}" in arguments
  assert shlex.split(job)[:3] == ["exec", "slm_jax", "train"] and RUN[1] in shlex.split(job)
  # All but a user's mistake.
  assert set(read["restarted"]) == set(range(1, 256)) - {MISTAKE_STATUS}


def test_what_is_not_asked_for_stays_as_xpk_has_it(capsys):
  (read,) = read_by_xpk(printed(capsys, *CREATE, "--topology=v5e:4x4"))
  assert (read["num_slices"], read["spot"], read["priority"]) == (1, False, "medium")
  assert (read["project"], read["zone"], read["env"]) == (None, None, None)


def test_every_slice_is_the_same_to_xpk(capsys):
  read = read_by_xpk(*(printed(capsys, *CREATE, f"--topology={name}") for name in SLICES))
  for name, found in zip(SLICES, read, strict=True):
    tpu = parse_slice(name)
    assert (found["topology"], found["gke_accelerator"]) == (tpu.topology, tpu.gke_accelerator)
    assert found["hosts"] == tpu.hosts, name


def test_every_priority_is_known_to_xpk(capsys):
  flags = ["--topology=v5e:4x4"]
  read = read_by_xpk(*(printed(capsys, *CREATE, *flags, f"--priority={x}") for x in PRIORITIES))
  assert tuple(found["priority"] for found in read) == PRIORITIES


def test_a_deletion_does_not_ask(capsys):
  (read,) = read_by_xpk(printed(capsys, *JOB, "--delete", "--project=p", "--zone=us-east5-a"))
  assert (read["func"], read["workload"], read["cluster"]) == ("workload_delete", "my-run", "pods")
  assert (read["force"], read["project"], read["zone"]) == (True, "p", "us-east5-a")


@pytest.mark.parametrize(
  ("flag", "wrong"),
  [
    ("--docker-image", "--image"),
    ("--num-slices=1", "--num-slices=one"),
    ("--tpu-type=v5litepod-16", "--tpu-type=v5e-16"),
    ("--workload=my-run", "--workload=My_Run"),
  ],
)
def test_a_wrong_flag_is_found(flag, wrong, capsys):
  arguments = printed(capsys, *CREATE, "--topology=v5e:4x4")
  changed = [argument.replace(flag, wrong, 1) for argument in arguments]
  assert changed != arguments
  with pytest.raises(AssertionError, match="xpk"):
    read_by_xpk(changed)
