"""A preemption notice: SIGTERM, to whichever process of a run."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from slm_jax.training.processes import Processes


@contextlib.contextmanager
def nothing_to_save(status: int) -> Iterator[None]:
  """Until a `StopRequest` takes over, SIGTERM ends the process at once, with one line and `status`."""

  def leave(signum, frame) -> None:
    print(
      "[slm_jax] stopped by SIGTERM with nothing to save; run the same command again",
      file=sys.stderr,
      flush=True,
    )
    os._exit(status)

  before = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


class StopRequest:
  """Turns SIGTERM into "save after this step and leave", on all processes at the same step."""

  def __init__(self, processes: Processes):
    self._processes = processes
    self._raised = False
    self._before = signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, signum, frame) -> None:
    self._raised = True

  def agreed(self, step: int) -> bool:
    """Whether some process has been asked to stop; all call it once in each step."""
    return any(self._processes.gather(f"step {step}", self._raised))

  def restore(self) -> None:
    """Puts the handler back that was there before."""
    signal.signal(signal.SIGTERM, self._before)
