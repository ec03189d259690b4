"""Progress of long work, one line a report, on stderr."""

import sys
import time


class Progress:
  """Speeds, time left, and what was skipped. Speeds are over the time since the last report.

  `quiet` prints nothing: of a run's processes the first speaks for all.
  """

  def __init__(self, total_steps: int, start_step: int, *, quiet: bool = False):
    self._total = total_steps
    self._quiet = quiet
    self._shown_at = time.perf_counter()
    self._shown_step = start_step
    self._audio_seconds = 0.0

  def note(self, text: str) -> None:
    """Prints one line."""
    if not self._quiet:
      print(f"[slm_jax] {text}", file=sys.stderr, flush=True)

  def advance(self, step: int, audio_seconds: float) -> dict[str, float]:
    """Counts a finished step; returns speeds since the last line shown."""
    now = time.perf_counter()
    self._audio_seconds += audio_seconds
    elapsed = max(now - self._shown_at, 1e-9)
    speed = {"steps_per_second": (step - self._shown_step) / elapsed}
    if self._audio_seconds:
      speed["audio_seconds_per_second"] = self._audio_seconds / elapsed
    return speed

  def show(
    self, step: int, values: dict[str, float], speed: dict[str, float], skipped: int
  ) -> None:
    """Prints one report and starts the next interval."""
    left = (self._total - step) / max(speed["steps_per_second"], 1e-9)
    parts = [f"step {step}/{self._total}", f"loss {values['loss']:.4f}"]
    if "accuracy" in values:
      parts.append(f"token accuracy {values['accuracy']:.3f}")
    parts.append(f"{speed['steps_per_second']:.2f} steps/s")
    if "audio_seconds_per_second" in speed:
      parts.append(f"{speed['audio_seconds_per_second']:.0f} s audio/s")
    parts += [f"ETA {int(left // 60)}:{int(left % 60):02d}", f"skipped {skipped}"]
    self.note(", ".join(parts))
    self._shown_at, self._shown_step, self._audio_seconds = time.perf_counter(), step, 0.0
