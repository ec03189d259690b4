"""What a run says of its steps, and what it does about a loss that is not finite."""

import dataclasses
import json
import math
from collections.abc import Callable

from etils import epath

from slm_jax.errors import UserError
from slm_jax.training.processes import Processes
from slm_jax.training.progress import Progress
from slm_jax.training.scalars import ScalarWriter

SKIPPED_STEPS = "skipped_steps.jsonl"
# Ids of a batch that an error message shows; the file has them all.
_SHOWN_IDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedStep:
  """A step whose numbers may still be on the device.

  Attributes:
    step: its number, from 1.
    metrics: scalars by name.
    example_ids: of this process's rows of the batch.
    skipped_examples: left out so far.
    padding: shares of padding so far, as of `progress.Padding`.
  """

  step: int
  metrics: dict
  example_ids: list[str]
  skipped_examples: int
  padding: dict[str, float] = dataclasses.field(default_factory=dict)


class StepReports:
  """Writes and prints steps; stops a run whose loss is not finite more often than it may.

  Attributes:
    skipped_steps: updates left out so far because loss or gradient was not finite.
  """

  def __init__(
    self,
    model_dir: epath.Path,
    *,
    total_steps: int,
    log_period: int,
    nonfinite_budget: int,
    schedule: Callable,
    writer: ScalarWriter,
    progress: Progress,
    processes: Processes,
    last_checkpoint: Callable[[], int | None],
    skipped_steps: int = 0,
  ):
    """As of `TrainConfig`; `last_checkpoint` tells the step of the newest one, `skipped_steps` how
    many were skipped before this start."""
    self._model_dir, self._total, self._period = model_dir, total_steps, log_period
    self._budget, self._schedule = nonfinite_budget, schedule
    self._writer, self._progress, self._processes = writer, progress, processes
    self._last_checkpoint = last_checkpoint
    self.skipped_steps = skipped_steps

  def report(self, finished: FinishedStep) -> None:
    """Reads the step's numbers, which waits for the device; every process must call.

    Raises:
      UserError: loss or gradient is not finite once more than the budget allows.
    """
    step = finished.step
    values = {name: float(value) for name, value in finished.metrics.items()}
    speed = self._progress.advance(step, values.get("audio_seconds", 0.0))
    if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
      self._skip(finished, values)
      return
    if step % self._period == 0 or step == 1 or step == self._total:
      rest = {
        "learning_rate": float(self._schedule(step - 1)),
        "skipped_examples": finished.skipped_examples,
        "skipped_steps": self.skipped_steps,
      }
      self._writer.write(step, values | rest | speed | finished.padding)
      self._progress.show(step, values | finished.padding, speed, finished.skipped_examples)

  def _skip(self, finished: FinishedStep, values: dict[str, float]) -> None:
    parts = self._processes.gather(f"ids of step {finished.step}", finished.example_ids)
    ids = [name for part in parts for name in part]
    self.skipped_steps += 1
    found = {"step": finished.step, "loss": str(values["loss"])}
    found |= {"grad_norm": str(values["grad_norm"]), "example_ids": ids}
    if self._processes.index == 0:
      with (self._model_dir / SKIPPED_STEPS).open("a") as file:
        file.write(json.dumps(found) + "\n")
    said = (
      f"step {finished.step}: loss {values['loss']} with gradient norm {values['grad_norm']}; examples "
      f"{', '.join(ids[:_SHOWN_IDS]) or 'without ids'}{' …' if len(ids) > _SHOWN_IDS else ''} (all in "
      f"{self._model_dir / SKIPPED_STEPS})"
    )
    if self.skipped_steps <= self._budget:
      self._progress.note(f"{said}; update skipped, {self.skipped_steps} of {self._budget} allowed")
      return
    last = self._last_checkpoint()
    kept = (
      f"the last good checkpoint is {self._model_dir}/checkpoint_{last}"
      if last
      else "no checkpoint yet"
    )
    raise UserError(
      f"{said}; {kept}; lower OptimizerConfig.learning_rate, look at these examples, or let "
      f"train.nonfinite_budget={self._budget} allow more"
    )
