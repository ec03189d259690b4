"""Finds registered SeqIO tasks by name, and makes sure their offline caches are there."""

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import seqio

import slm_jax
from slm_jax.cache import default_cache_dir
from slm_jax.data import seqio_cache
from slm_jax.data.speech_tasks import SpeechTask
from slm_jax.errors import UserError

# Folder of the checkout whose modules register tasks.
TASKS = "tasks"


def set_directories(tfds_data_dir: str | None, cache_dirs: str) -> None:
  """Tells SeqIO where TFDS keeps data and where offline caches are; `cache_dirs` is comma-separated."""
  if tfds_data_dir:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  extra = [folder for folder in cache_dirs.split(",") if folder]
  seqio.set_global_cache_dirs([str(default_cache_dir()), *extra])


def load_module(module: str) -> None:
  """Imports the module that registers tasks; raises UserError if there is none of that name, or if it fails."""
  try:
    importlib.import_module(module)
  except UserError:
    raise
  except Exception as error:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if not missing or not (module + ".").startswith(missing + "."):
      raise UserError(
        f"module {module} fails at {_place(error)}: {type(error).__name__}: {error}"
      ) from error
    known = [*modules_here(), *(path.stem for path in Path().glob("[!_]*.py"))]
    close = difflib.get_close_matches(module, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
      f"MIXTURE_OR_TASK_MODULE={module!r} cannot be imported from {Path.cwd()}; {hint}run from the checkout or name "
      "the module that registers the task"
    ) from error


def _place(error: Exception) -> str:
  """File and line of the last call that no package has made, this one and Python's own included."""
  homes = (Path(slm_jax.__file__).parent, Path(importlib.__file__).parents[1])
  installed = (str(Path(seqio.__file__).parents[1]), *map(str, homes), "<")
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    if not frame.filename.startswith(installed):
      return f"{frame.filename}:{frame.lineno}"
  return "its beginning"


def modules_here() -> list[str]:
  """Names of the modules in `tasks/` of the working directory."""
  return sorted(f"{TASKS}.{path.stem}" for path in Path(TASKS).glob("[!_]*.py"))


def find(name: str, module: str) -> seqio.Task | seqio.Mixture:
  """Imports `module` and returns the task or mixture `name`.

  Raises:
    UserError: the module does not import, or no such task; the message lists near misses and the modules that
      register them.
  """
  load_module(module)
  names = names_registered()
  if name in names:
    return seqio.get_mixture_or_task(name)
  origins = {**_names_of_other_modules(), **dict.fromkeys(names, module)}
  problem = f"MIXTURE_OR_TASK_NAME={name!r} is not registered by {module}"
  if name in origins:
    raise UserError(f"{problem}; it is by {origins[name]}")
  close = difflib.get_close_matches(name, origins, n=3, cutoff=0.5)
  hint = " or ".join(f"{n} ({origins[n]})" for n in close)
  raise UserError(
    f"{problem}; did you mean {hint}?" if hint else f"{problem}; registered: {', '.join(names)}"
  )


def _names_of_other_modules() -> dict[str, str]:
  """Task or mixture → the module in `tasks/` that registers it, of those not imported yet."""
  origins: dict[str, str] = {}
  for module in modules_here():
    before = set(names_registered())
    try:
      importlib.import_module(module)
    except Exception:  # noqa: S112  a module that fails has nothing to do with the name that was asked for
      continue
    origins |= dict.fromkeys(set(names_registered()) - before, module)
  return origins


def names_registered() -> list[str]:
  """Names of all tasks and mixtures registered so far."""
  return sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})


def task_kinds(names: Iterable[str]) -> dict[str, str]:
  """Task → its kind in evaluation, of those that were registered with metrics."""
  tasks = [task for name in names for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))]
  return {t.name: t.kind for t in tasks if isinstance(t, SpeechTask) and t.kind}


def subtasks(names: Iterable[str]) -> list[str]:
  """The tasks of tasks and mixtures, each once, in order."""
  tasks = [task for name in names for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))]
  return list(dict.fromkeys(task.name for task in tasks))


def fill_caches(name: str, *, num_processes: int) -> dict[str, dict[str, int]]:
  """Makes the offline caches that `name` lacks; finished shards of an interrupted run are kept.

  Returns, and says on stderr, what the caches lack of their data: task → reason → number of records.

  A cache in the default folder is made again when its task's data have changed since; one in any other folder is
  the user's own and is used as it stands.
  """
  own, lacking = default_cache_dir(), {}
  for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
    if not task.supports_caching:
      continue
    if not task.cache_dir or Path(task.cache_dir).is_relative_to(own):
      seqio_cache.cache_task(task.name, num_processes=num_processes)
    if counts := seqio_cache.left_out(Path(task.cache_dir or own)):
      lacking[task.name] = dict(counts)
      reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
      print(f"[slm_jax] {task.name}: left out {reasons} (see {task.cache_dir})", file=sys.stderr)
  return lacking
