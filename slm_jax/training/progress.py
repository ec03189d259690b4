"""Progress of long work, one line a report, on stderr."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Padding:
  """Shares of padding in this process's rows since it started, of audio and of the LM's tokens.

  The LM's positions are those of its encoder (speech after length reduction, instruction) and of its
  decoder.
  """

  def __init__(self, speech_positions: Callable[[int], int] = lambda _: 0):
    """`speech_positions`: samples → positions of the LM's encoder that this much speech takes."""
    self._speech_positions = speech_positions
    self._real, self._places = np.zeros(2), np.zeros(2)  # samples, tokens

  def count(self, arrays: Mapping[str, Any]) -> dict[str, float]:
    """Adds a batch by Batch's field names; returns `audio_padding`, `token_padding`, of what it has."""
    real, places = 0, 0  # of the LM
    if "audio" in arrays:
      lengths = np.asarray(arrays["audio_lengths"])
      rows, longest = arrays["audio"].shape
      self._add(0, lengths.sum(), rows * longest)
      real += sum(self._speech_positions(int(length)) for length in lengths)
      places += rows * self._speech_positions(longest)
    elif "speech_frames" in arrays:
      frames, size = arrays["speech_frame_lengths"], arrays["speech_frames"].shape[1]
      self._add(0, frames.sum(), len(frames) * size)
      real, places = real + int(frames.sum()), places + len(frames) * size
    for name in ("encoder_input_tokens", "decoder_target_tokens"):
      if name in arrays:
        real += int(np.count_nonzero(arrays[name]))
        places += arrays[name].size
    if (shared := arrays.get("lm_rows")) is not None:
      rows = len(arrays["decoder_target_tokens"]) // shared.examples
      places = rows * (shared.inputs + shared.targets)
    self._add(1, real, places)
    shares = 1 - self._real / np.maximum(self._places, 1)
    names = ("audio_padding", "token_padding")
    return {
      name: float(share)
      for name, share, places in zip(names, shares, self._places, strict=True)
      if places
    }

  def _add(self, kind: int, real: float, places: float) -> None:
    self._real[kind] += real
    self._places[kind] += places


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
    shares = [
      f"{kind} {values[f'{kind}_padding']:.0%}"
      for kind in ("audio", "token")
      if f"{kind}_padding" in values
    ]
    if shares:
      parts.append(f"padding {' '.join(shares)}")
    parts += [f"ETA {int(left // 60)}:{int(left % 60):02d}", f"skipped {skipped}"]
    self.note(", ".join(parts))
    self._shown_at, self._shown_step, self._audio_seconds = time.perf_counter(), step, 0.0
