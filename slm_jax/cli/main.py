"""`slm_jax MODE …`: one console script for every job, with T5X's flags."""

import argparse
import glob
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from slm_jax.cache import default_cache_dir
from slm_jax.errors import UserError

MODES = {
  "train": "train an adapter (or continue a run) from a gin file",
  "eval": "score a trained adapter on SeqIO tasks and write a report",
  "infer": "answer instructions about audio files",
  "retrieve": "find the entities of a list that audio files name",
  "export": "write a trained adapter as a bundle, one small folder, or with its bases",
  "serve": "answer over HTTP, by OpenAI's endpoints",
  "import": "write public T5-family weights as a folder that runs load",
  "cache": "keep the frozen speech encoder's frames of a run's data",
  "tasks": "list SeqIO tasks, or fill their caches",
  "preflight": "compile a run for TPU slices that are not there: memory, cost, does it fit",
  "launch": "start a training job on TPUs: GKE (xpk or a JobSet) or TPU VMs",
  "pretrain": "train one of the two frozen models of the miniature",
}
# A mode whose name is a word of Python's has its module under another.
_MODULES = {"import": "importing"}
_BINDINGS = ("--gin.", "--gin_bindings=")
_RUN_MODE = "--run_mode="
# 128 + SIGINT, as shells have it.
INTERRUPTED = 130
USAGE = (
  "usage: slm_jax MODE [flags]   (slm_jax MODE --help shows an example)\n\nmodes:\n"
  + "".join(f"  {name:<9} {text}\n" for name, text in MODES.items())
)


class Parser(argparse.ArgumentParser):
  """argparse whose mistakes are user errors: one line, exit 2."""

  def error(self, message: str):
    raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def parser_for(mode: str, example: str) -> Parser:
  """A parser with the flags every mode shares; `example` is shown by --help."""
  parser = Parser(
    prog=f"slm_jax {mode}",
    description=MODES[mode],
    epilog=f"example:\n  {example}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--gin_file", action="append", default=[], help="repeatable; later ones win")
  parser.add_argument("--gin_search_paths", default="", help="comma-separated folders of gin files")
  parser.add_argument("--tfds_data_dir", help="where TFDS keeps its data sets")
  parser.add_argument("--seqio_additional_cache_dirs", default="", help="comma-separated")
  return parser


def parse(parser: Parser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Splits bindings off, `--gin.NAME=VALUE` or `--gin_bindings=NAME=VALUE`; returns (flags, bindings)."""
  bindings, rest = [], []
  for arg in argv:
    prefix = next((prefix for prefix in _BINDINGS if arg.startswith(prefix)), None)
    if prefix is None:
      rest.append(arg)
    elif "=" not in arg.removeprefix(prefix):
      raise UserError(f"{arg}: expected {prefix}NAME=VALUE")
    else:
      bindings.append(arg.removeprefix(prefix))
  return parser.parse_args(rest), bindings


def _quiet_environment() -> None:
  """Set before JAX and TensorFlow are imported: compilations are kept between runs, and TF says only errors."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_cache_dir() / "xla"))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _keep_virtual_devices_in_step() -> None:
  """Runs collectives of virtual CPU devices in the order of the program.

  The devices share a few threads, and each waits inside a collective. With XLA's concurrent order they may all wait in
  different ones, until it aborts the process.
  """
  flags, option = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_cpu_enable_concurrency_optimized_scheduler",
  )
  if "--xla_force_host_platform_device_count" in flags and option not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {option}=false"


# Where the kernel shows what JAX may run on: TPUs (and Google's network cards, 0x1ae0 too), GPUs of NVIDIA and AMD.
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")
_PCI_VENDORS = "/sys/bus/pci/devices/*/vendor"
_GOOGLE = "0x1ae0"


def _pass_over_absent_accelerators() -> None:
  """Keeps JAX from loading libtpu, installed for preflight alone, to find that there is no TPU.

  It takes 95 MiB and complains in four lines.
  """
  if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
    return
  vendors = (Path(path).read_text().strip() for path in glob.glob(_PCI_VENDORS))
  if not any(map(glob.glob, _ACCELERATORS)) and _GOOGLE not in vendors:
    os.environ["JAX_PLATFORMS"] = "cpu"


def main(argv: list[str]) -> int:
  """Runs one mode; returns the exit status. User errors are one line on stderr and status 2."""
  if not argv or argv[0] in ("-h", "--help"):
    print(USAGE, end="")
    return 0 if argv else 2
  # T5X's main.py is told the mode by a flag, which may stand anywhere.
  flag = next((arg for arg in argv if arg.startswith(_RUN_MODE)), argv[0])
  mode, rest = flag.removeprefix(_RUN_MODE), [arg for arg in argv if arg is not flag]
  try:
    if mode not in MODES:
      raise UserError(f"no mode {mode!r}; expected one of {', '.join(MODES)}")
    _quiet_environment()
    _keep_virtual_devices_in_step()
    _pass_over_absent_accelerators()
    # Tasks and gin files are found from the working directory, as in T5X.
    sys.path.insert(0, os.getcwd())
    return importlib.import_module(f"slm_jax.cli.{_MODULES.get(mode, mode)}").run(rest)
  except UserError as error:
    print(f"slm_jax: error: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    return 1
  except KeyboardInterrupt:
    print("slm_jax: interrupted", file=sys.stderr)
    return INTERRUPTED


def _use_huge_pages() -> None:
  """Starts the process again with glibc's allocator on huge pages, which it reads only at its start.

  XLA takes and returns hundreds of MiB in every step on a CPU; in pages of 4 KiB the kernel's page faults cost about a
  fifth of the step. A GLIBC_TUNABLES that is set already is left alone.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def console() -> None:
  """Entry point of the console script."""
  _use_huge_pages()
  sys.exit(main(sys.argv[1:]))
