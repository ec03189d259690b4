"""A picture of a recording: its waveform and its log-mel spectrogram."""

from pathlib import Path

import numpy as np

from slm_jax.audio.files import FULL_SCALE, SAMPLE_RATE
from slm_jax.audio.mel_filters import mel_filters

_WINDOW, _HOP, _BINS = 400, 160, 80  # 25 ms, 10 ms
_FLOOR_DB = -80.0


def log_mel_db(audio: np.ndarray) -> np.ndarray:
  """int16 `[S]` at 16 kHz → fp32 `[T, 80]`, dB below the loudest bin, at least -80."""
  samples = np.pad(audio, (0, max(0, _WINDOW - len(audio)))).astype(np.float32) / FULL_SCALE
  frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
  power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), n=512)) ** 2
  filters = mel_filters(
    num_mel_bins=_BINS, fft_size=512, sample_rate=SAMPLE_RATE, min_hz=20, max_hz=8_000, scale="htk"
  )
  mel = power @ filters
  reference = max(float(mel.max()), 1e-12)
  decibels = 10 * np.log10(np.maximum(mel / reference, 10 ** (_FLOOR_DB / 10)))
  return decibels.astype(np.float32)


def write_spectrogram(audio: np.ndarray, path: Path, title: str) -> None:
  """Writes a PNG of int16 `[S]` at 16 kHz."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  seconds = len(audio) / SAMPLE_RATE
  figure = Figure(figsize=(10, 4), layout="constrained")
  FigureCanvasAgg(figure)
  wave, mel = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
  wave.plot(np.arange(len(audio)) / SAMPLE_RATE, audio / FULL_SCALE, linewidth=0.4)
  wave.set_ylim(-1, 1)
  # Dollar signs would begin a formula.
  wave.set_title(title.replace("$", r"\$"), fontsize=9, loc="left")
  mel.imshow(
    log_mel_db(audio).T, origin="lower", aspect="auto", extent=(0, max(seconds, 1e-3), 0, _BINS)
  )
  mel.set_xlabel("s")
  mel.set_ylabel("mel bin")
  figure.savefig(path, dpi=100)
