"""A preemption notice: SIGTERM, to whichever process of a run."""

import signal

from slm_jax.training.processes import Processes


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
