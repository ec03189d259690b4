"""Starts a run of several processes: who is there, do they agree, and one clear line when one is lost."""

import contextlib
import dataclasses
import hashlib
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import slm_jax
from slm_jax.errors import UserError
from slm_jax.training import roll_call
from slm_jax.training.roll_call import Crew

# Seconds in which the roll call says who is gone, after something that may be its consequence failed here.
_PATIENCE = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessesConfig:
  """Where the processes of a run meet; all None: JAX finds a TPU pod's or a cluster's by itself."""

  coordinator_address: str | None = None
  process_count: int | None = None
  process_index: int | None = None
  roll_call_seconds: float = 60.0

  def __post_init__(self):
    given = (self.coordinator_address, self.process_count, self.process_index)
    if any(x is None for x in given) and any(x is not None for x in given):
      raise ValueError(
        "--coordinator_address, --process_count and --process_index go together: "
        f"{self.coordinator_address}, {self.process_count}, {self.process_index}"
      )
    if self.process_count is not None and self.process_index is not None:
      if not 0 <= self.process_index < self.process_count:
        raise ValueError(
          f"--process_index={self.process_index}: expected 0 to {self.process_count - 1} "
          f"(--process_count={self.process_count})"
        )


class Processes:
  """What a run needs of its processes; without a crew it is a single one."""

  def __init__(self, crew: Crew | None = None):
    self._crew = crew

  @property
  def count(self) -> int:
    return 1 if self._crew is None else self._crew.count

  @property
  def index(self) -> int:
    """This one's, from 0."""
    return 0 if self._crew is None else self._crew.index

  def gather(self, topic: str, value: Any) -> list:
    """Everyone's `value`, by process; all must call. As `Crew.gather`."""
    return [value] if self._crew is None else self._crew.gather(topic, value)

  def check_agreement(self, facts: dict[str, Any]) -> None:
    """Raises UserError, on all processes, naming who has other `facts` than the rest, and which.

    Args:
      facts: JSON-ready values by name.
    """
    if self._crew is None:
      return
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
    if len(set(self.gather("comparing settings", digest))) == 1:
      return
    everyone = self.gather("comparing settings in full", {k: repr(v) for k, v in facts.items()})
    raise UserError("; ".join(differences(everyone, [str(m) for m in self._crew.members])))


ALONE = Processes()


def differences(everyone: list[dict[str, str]], names: list[str]) -> list[str]:
  """One phrase for each process and fact that is not as most have it; of two equal camps process 0's counts."""
  found = []
  for fact in sorted({fact for facts in everyone for fact in facts}):
    values = [facts.get(fact, "nothing") for facts in everyone]
    counts = Counter(values)
    usual = max(values, key=lambda value: (counts[value], value == values[0]))
    found += [
      f"{name} has {fact}={value}, the others {usual}"
      for name, value in zip(names, values, strict=True)
      if value != usual
    ]
  return found


def code_facts() -> dict[str, str]:
  """What tells one version of the program from another."""
  package = Path(slm_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
  return {
    "code (slm_jax)": f"{slm_jax.__version__} {digest.hexdigest()[:12]}",
    "code (jax)": jax.__version__,
  }


@contextlib.contextmanager
def joined(config: ProcessesConfig) -> Iterator[Processes]:
  """Joins the run's processes before JAX touches a device, and parts from them after.

  Where there are several, an error inside ends this process, and the others with it, each with one line.

  Raises:
    UserError: a process is missing, or the single process's own errors.
  """
  address, count, index, local_device_ids = _where(config)
  if address is None or count is None or index is None or count == 1:
    yield ALONE
    return
  crew = roll_call.call(address, count, index, timeout=config.roll_call_seconds)
  # The processes of a CPU have no other means; it does nothing elsewhere.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    # All are there, so this is quick.
    jax.distributed.initialize(address, count, index, local_device_ids)
    yield Processes(crew)
    jax.distributed.shutdown()
    crew.leave()
  except UserError as error:
    crew.fail(str(error), 2)
  except KeyboardInterrupt:
    crew.fail("interrupted", 130)
  except BaseException as error:
    # Where a process is lost, what the others compute together fails too.
    time.sleep(_PATIENCE)
    traceback.print_exc()
    crew.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", 1)


def _where(config: ProcessesConfig) -> tuple:
  """(coordinator's address, number of processes, own index, device ids), all None for a single process."""
  if config.coordinator_address is not None:
    return config.coordinator_address, config.process_count, config.process_index, None
  # What jax.distributed.initialize would find. It is asked before, because the roll call comes first.
  from jax._src.clusters import ClusterEnv

  return ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, round(config.roll_call_seconds)
  )
