"""Triangular mel filterbanks in the flavours that published frontends use."""

import functools
from typing import Literal

import numpy as np

MelScale = Literal["htk", "slaney", "kaldi"]
# Slaney's scale is linear up to this frequency, in Hz, and logarithmic above (Auditory Toolbox).
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_HZ_PER_MEL = 200.0 / 3
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: np.ndarray, scale: MelScale) -> np.ndarray:
  """Frequencies in Hz to mels."""
  if scale == "htk":
    return 2595.0 * np.log10(1.0 + hz / 700.0)
  if scale == "kaldi":
    return 1127.0 * np.log(1.0 + hz / 700.0)
  above = np.log(np.maximum(hz, _SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
  return np.minimum(hz, _SLANEY_BREAK_HZ) / _SLANEY_HZ_PER_MEL + above


def mel_to_hz(mel: np.ndarray, scale: MelScale) -> np.ndarray:
  """The inverse of `hz_to_mel`."""
  if scale == "htk":
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
  if scale == "kaldi":
    return 700.0 * (np.exp(mel / 1127.0) - 1.0)
  border = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
  linear = np.minimum(mel, border) * _SLANEY_HZ_PER_MEL
  return linear * np.exp(np.maximum(mel - border, 0.0) * _SLANEY_LOG_STEP)


@functools.cache
def mel_filters(
  *,
  num_mel_bins: int,
  fft_size: int,
  sample_rate: int,
  min_hz: float,
  max_hz: float,
  scale: MelScale,
  area_normalised: bool = False,
  triangles_in_mel: bool = False,
) -> np.ndarray:
  """Filters whose corners are equally spaced in mel.

  Args:
    num_mel_bins: F.
    fft_size: points of the Fourier transform that the bins come from.
    sample_rate, min_hz, max_hz: in Hz.
    scale: the mel scale.
    area_normalised: each triangle has the area of 1 in Hz, not the height of 1 (Slaney).
    triangles_in_mel: the sides are straight over mel, not over Hz (Kaldi).

  Returns:
    fp32 [fft_size // 2 + 1, F].
  """
  low, high = (float(hz_to_mel(np.asarray(hz), scale)) for hz in (min_hz, max_hz))
  corners_mel = np.linspace(low, high, num_mel_bins + 2)
  bins_hz = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
  corners_hz = mel_to_hz(corners_mel, scale)
  corners, bins = (
    (corners_mel, hz_to_mel(bins_hz, scale)) if triangles_in_mel else (corners_hz, bins_hz)
  )
  left, centre, right = corners[:-2], corners[1:-1], corners[2:]
  rising = (bins[:, None] - left) / (centre - left)
  falling = (right - bins[:, None]) / (right - centre)
  filters = np.maximum(0.0, np.minimum(rising, falling))
  if area_normalised:
    filters = filters * (2.0 / (corners_hz[2:] - corners_hz[:-2]))
  return filters.astype(np.float32)
