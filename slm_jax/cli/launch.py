"""`slm_jax launch`."""

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

from slm_jax.cli.main import INTERRUPTED, parse, parser_for
from slm_jax.errors import UserError
from slm_jax.launch import gke, tpu_vm
from slm_jax.launch.commands import Command, Runner
from slm_jax.launch.container import build_commands, path_in_image
from slm_jax.launch.job import ROLL_CALL_SECONDS, STOPPED_STATUS, Job, check_name
from slm_jax.launch.tpu_slice import parse_slice

EXAMPLE = (
  "slm_jax launch --target=xpk --cluster=my-cluster --name=my-run --topology=v5e:4x4 \\\n"
  "    --image=us-docker.pkg.dev/my-project/slm/slm_jax:1 --gin_file=experiments/mini.gin \\\n"
  "    --gin.MODEL_DIR=\"'gs://my-bucket/my-run'\" --dry_run"
)
TARGETS = ("xpk", "jobset", "tpu_vm")
# Flags that only some targets know.
_ONLY = {
  "cluster": ("xpk",),
  "priority": ("xpk", "jobset"),
  "project": ("xpk", "tpu_vm"),
  "zone": ("xpk", "tpu_vm"),
  "service_account": ("jobset", "tpu_vm"),
  "runtime_version": ("tpu_vm",),
  "reserved": ("tpu_vm",),
  "keep": ("tpu_vm",),
}
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/.*)?")


def _parser():
  parser = parser_for("launch", EXAMPLE)
  parser.add_argument("--target", required=True, choices=TARGETS)
  parser.add_argument("--name", required=True, help="of the workload or queued resource")
  parser.add_argument("--topology", help="chip and shape of a slice, v5e:4x4")
  parser.add_argument("--num_slices", type=int, default=1)
  parser.add_argument("--image", help="of the container, REGISTRY/PATH:TAG")
  parser.add_argument("--build", action="store_true", help="build and push the image first")
  parser.add_argument("--env", action="append", default=[], help="NAME=VALUE; repeatable")
  parser.add_argument("--max_restarts", type=int, default=3, help="after preemptions and crashes")
  parser.add_argument("--spot", action="store_true", help="capacity that may be taken away")
  parser.add_argument("--cluster", help="xpk: the GKE cluster")
  parser.add_argument("--priority", help=f"xpk: {', '.join(gke.PRIORITIES)}; jobset: a class")
  parser.add_argument("--project", help="xpk, tpu_vm: instead of gcloud's default")
  parser.add_argument("--zone", help="tpu_vm; xpk: instead of gcloud's default")
  parser.add_argument("--service_account", help="jobset, tpu_vm: what the job may read and write")
  parser.add_argument("--runtime_version", help="tpu_vm: instead of the one for the chip")
  parser.add_argument("--reserved", action="store_true", help="tpu_vm: reserved capacity")
  parser.add_argument("--keep", action="store_true", help="tpu_vm: keep the machines at the end")
  parser.add_argument("--skip_preflight", action="store_true", help="do not check that it fits")
  parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
  parser.add_argument("--delete", action="store_true", help="end the job, give its machines back")
  return parser


def run(argv: list[str]) -> int:
  """Starts a training job on TPUs (or prints how, or ends it); returns the exit status."""
  flags, bindings = parse(_parser(), argv)
  for flag, targets in _ONLY.items():
    if getattr(flags, flag) and flags.target not in targets:
      raise UserError(f"--{flag} is for --target={' or '.join(targets)}, not {flags.target}")
  for flag, target in (("cluster", "xpk"), ("zone", "tpu_vm")):
    if flags.target == target and not getattr(flags, flag):
      raise UserError(f"--target={target} needs --{flag}")
  if flags.target == "xpk" and flags.priority and flags.priority not in gke.PRIORITIES:
    raise UserError(f"--priority={flags.priority}: expected one of {', '.join(gke.PRIORITIES)}")
  if flags.spot and flags.reserved:
    raise UserError("--spot and --reserved: capacity is one or the other")
  if flags.delete:
    return _delete(flags)
  # The compiler for TPUs needs none, and an accelerator that is here is left alone.
  os.environ["JAX_PLATFORMS"] = "cpu"
  job, config = _job(flags, bindings)
  start = _commands(job, flags)
  if not flags.skip_preflight:
    _check_fits(config, flags)
  images = build_commands(job.image, _checkout()) if flags.build else []
  if flags.dry_run:
    for command in [*images, *start]:
      print(command.shown())
    return 0
  runner = Runner()
  for command in images:
    runner.check(command)
  if flags.target == "tpu_vm":
    try:
      tpu_vm.QueuedJob(job, _place(flags), runner, note=_note).finish(keep=flags.keep)
    except KeyboardInterrupt:
      return INTERRUPTED
    return 0
  for command in start:
    runner.check(command)
  return 0


def _delete(flags: argparse.Namespace) -> int:
  try:
    check_name(flags.name)
  except ValueError as error:
    raise UserError(f"--{error}") from error
  if flags.target == "xpk":
    command = gke.xpk_delete(
      flags.name, cluster=flags.cluster, project=flags.project, zone=flags.zone
    )
  elif flags.target == "jobset":
    command = gke.kubectl_delete(flags.name)
  else:
    command = tpu_vm.delete(flags.name, _place(flags))
  if flags.dry_run:
    print(command.shown())
  else:
    Runner().check(command)
  return 0


def _job(flags: argparse.Namespace, bindings: list[str]):
  """The job of the flags and its training config, checked as the job itself will check it."""
  from slm_jax import config

  for flag in ("topology", "image", "gin_file"):
    if not getattr(flags, flag):
      raise UserError(f"--{flag} is required; see slm_jax launch --help")
  env = {}
  for text in flags.env:
    name, equals, value = text.partition("=")
    if not equals:
      raise UserError(f"--env={text}: expected NAME=VALUE")
    env[name] = value
  search_paths = [path for path in flags.gin_search_paths.split(",") if path]
  config.load(flags.gin_file, bindings, search_paths)
  train = config.build("train")
  if not _BUCKET.fullmatch(train.model_dir):
    raise UserError(
      f"MODEL_DIR={train.model_dir!r}: the hosts of a pod share no disk; expected gs://BUCKET/FOLDER"
    )
  _check_in_image(train)
  try:
    job = Job(
      name=flags.name,
      tpu_slice=parse_slice(flags.topology),
      num_slices=flags.num_slices,
      image=flags.image,
      command=_train_command(flags, bindings, search_paths),
      env=env,
      spot=flags.spot,
      max_restarts=flags.max_restarts,
    )
  except ValueError as error:
    raise UserError(f"launch: {error}") from error
  return job, train


def _train_command(
  flags: argparse.Namespace, bindings: list[str], search_paths: list[str]
) -> tuple[str, ...]:
  """`slm_jax train` in the container, with the same gin files and bindings."""
  from slm_jax.config import PACKAGE_ROOT, find_gin_file

  checkout = _checkout()
  known = [*map(Path, search_paths), PACKAGE_ROOT / "gin", PACKAGE_ROOT]
  files = [path_in_image(find_gin_file(name, known), checkout) for name in flags.gin_file]
  args = ["slm_jax", "train", *(f"--gin_file={name}" for name in files)]
  if search_paths:
    folders = ",".join(path_in_image(Path(path), checkout) for path in search_paths)
    args.append(f"--gin_search_paths={folders}")
  for flag in ("tfds_data_dir", "seqio_additional_cache_dirs"):
    if value := getattr(flags, flag):
      args.append(f"--{flag}={value}")
  args += [f"--gin.{binding}" for binding in bindings]
  args += [f"--stopped_status={STOPPED_STATUS}", f"--roll_call_seconds={ROLL_CALL_SECONDS}"]
  return tuple(args)


def _check_in_image(train) -> None:
  """Raises UserError if the pod would not find the run's bases or its tasks: seen here, that costs nothing."""
  from slm_jax.training.recipes import PACKAGE_PREFIX

  checkout, recipe = _checkout(), train.model
  fields = ("speech_encoder", "language_model", "tokenizer", "pretrained")
  bases = {field: getattr(recipe, field, None) for field in fields}
  for path in (*bases.values(), train.initial_checkpoint_path):
    if isinstance(path, str) and "://" not in path and not path.startswith(PACKAGE_PREFIX):
      inside = path_in_image(checkout / path, checkout)
      if Path(path).is_absolute():
        raise UserError(f"{path}: the job's image has it as {inside}, bind it so")
  for field, base in bases.items():
    shape = base is not None and not isinstance(base, str)
    if shape and not re.match(recipe.trainable, f"{field}/"):
      raise UserError(
        f"AdapterRecipe.{field} has a shape and no weights; bind it to a folder or gs://…/checkpoint_<step>"
      )
  module = getattr(train.train_dataset, "mixture_or_task_module", None)
  if module is not None:
    try:
      found = importlib.util.find_spec(module)
    except ImportError:
      found = None
    if found is None or found.origin is None:
      raise UserError(f"MIXTURE_OR_TASK_MODULE={module!r} is not in {Path.cwd()} nor installed")
    path_in_image(Path(found.origin), checkout)


def _checkout() -> Path:
  from slm_jax.config import PACKAGE_ROOT

  return PACKAGE_ROOT


def _place(flags: argparse.Namespace) -> tpu_vm.Place:
  return tpu_vm.Place(
    zone=flags.zone,
    project=flags.project,
    runtime_version=flags.runtime_version,
    service_account=flags.service_account,
    reserved=flags.reserved,
  )


def _commands(job: Job, flags: argparse.Namespace) -> list[Command]:
  """What starts the job, in order. On TPU VMs: what an undisturbed run comes to."""
  if flags.target == "xpk":
    options = {"cluster": flags.cluster, "priority": flags.priority}
    return [gke.xpk_create(job, **options, project=flags.project, zone=flags.zone)]
  if flags.target == "jobset":
    options = {"priority": flags.priority, "service_account": flags.service_account}
    return [gke.kubectl_create(job, **options)]
  place = _place(flags)
  commands = [
    tpu_vm.create(job, place),
    tpu_vm.describe(job.name, place),
    tpu_vm.fetch(job, place),
    tpu_vm.start(job, place),
    tpu_vm.follow(job.name, place),
  ]
  return commands if flags.keep else [*commands, tpu_vm.delete(job.name, place)]


def _check_fits(train, flags: argparse.Namespace) -> None:
  """Compiles the train step for the slices; raises UserError if it does not fit."""
  from slm_jax.launch.preflight import preflight

  report = preflight(
    train, flags.topology, num_slices=flags.num_slices, programs=("train",), note=_note
  )
  if not report.fits:
    raise UserError(
      f"not launched: {report.summary()}; see slm_jax preflight --search, or --skip_preflight"
    )
  _note(report.summary())


def _note(line: str) -> None:
  print(f"[slm_jax] {line}", file=sys.stderr, flush=True)
