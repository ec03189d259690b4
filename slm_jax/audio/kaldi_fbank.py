"""Kaldi's log-mel filterbank (`compute-fbank-feats`, no dither), and its use in pairs of frames.

Framing. Edges are snipped: a frame is there if all of its 25 ms are, so a real frame never reads past
an example's end, and fewer than 400 samples have none.

Spectrum. Samples in int16 steps; each frame less its mean, pre-emphasised within itself, under
Povey's window (a symmetric Hann window to the power of 0.85); power of 512 points; triangles that
are straight over Kaldi's mel scale, from 20 Hz; natural logarithm of max(power, fp32's epsilon).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.double_precision import in_double
from slm_jax.audio.framing import cut_frames, sample_mask, to_float
from slm_jax.audio.mel_filters import mel_filters

_SAMPLE_RATE = 16_000
_WINDOW = 400
_HOP = 160
_FFT_SIZE = 512
_PREEMPHASIS = 0.97
_MIN_HZ = 20.0
_FULL_SCALE = 32_768.0
_FLOOR = 2.0**-23
_VARIANCE_FLOOR = 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True)
class KaldiFbankConfig:
  """Settings of the filterbank; all others are fixed, and at 16 kHz."""

  num_mel_bins: int = 80

  def __post_init__(self):
    if self.num_mel_bins < 1:
      raise ValueError(f"num_mel_bins={self.num_mel_bins}: expected at least 1")

  @property
  def hop(self) -> int:
    """Samples from one frame to the next."""
    return _HOP

  def num_frames(self, num_samples):
    """Whole frames of a waveform of `num_samples` samples, an int or an int32 array."""
    return ((num_samples - _WINDOW) // _HOP + 1) * (num_samples >= _WINDOW)


def kaldi_fbank(
  audio: jax.Array, lengths: jax.Array, config: KaldiFbankConfig
) -> tuple[jax.Array, jax.Array]:
  """Log-mel features, not normalised.

  Args:
    audio: int16 or float in [-1, 1], [B, S] at 16 kHz; what lies past the lengths is ignored.
    lengths: int32 [B], in samples.
    config: the settings.

  Returns:
    (features fp32 [B, T, F], 0 at padding; mask bool [B, T], True = real), T =
    config.num_frames(S).
  """
  num_samples = audio.shape[1]
  num_frames = config.num_frames(num_samples)
  audio = jnp.where(sample_mask(lengths, num_samples), to_float(audio), 0.0) * _FULL_SCALE
  frames = cut_frames(audio, window=_WINDOW, hop=_HOP, start=0, num_frames=max(1, num_frames))
  power = in_double(_power, frames)
  filters = mel_filters(
    num_mel_bins=config.num_mel_bins,
    fft_size=_FFT_SIZE,
    sample_rate=_SAMPLE_RATE,
    min_hz=_MIN_HZ,
    max_hz=_SAMPLE_RATE / 2,
    scale="kaldi",
    triangles_in_mel=True,
  )
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  mel = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
  features = jnp.log(jnp.maximum(mel, _FLOOR))[:, :num_frames]
  mask = jnp.arange(num_frames)[None] < config.num_frames(lengths)[:, None]
  return jnp.where(mask[..., None], features, 0.0), mask


def _power(frames: jax.Array) -> jax.Array:
  """Power spectra of frames [B, T, 400] in int16 steps: [B, T, 257], in the frames' precision."""
  # In two steps, the first of which is exact: what rounding would leave of a large offset in fp32 is above
  # the floor of silence.
  frames = frames - jnp.round(jnp.mean(frames, axis=-1, keepdims=True))
  frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
  # Kaldi lets the first sample follow itself.
  previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
  frames = frames - _PREEMPHASIS * previous
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))
  spectrum = jnp.fft.rfft(frames * np.power(hann, 0.85).astype(frames.dtype), n=_FFT_SIZE)
  return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def normalise_bins(features: jax.Array, mask: jax.Array) -> jax.Array:
  """Each bin less its mean over an example's real frames, over their standard deviation.

  The variance is the unbiased one, plus 1e-7.

  Args:
    features: fp32 [B, T, F].
    mask: bool [B, T], True = real, real frames first.

  Returns:
    fp32 [B, T, F], 0 at padding, and everywhere in an example of a single frame.
  """
  real = mask[..., None]
  count = jnp.sum(mask, axis=1)[:, None, None]
  # Distances from frame 0: a bin that never changes gives exactly 0, where the rounding of a mean
  # would be raised by the division, 3,000-fold.
  shifted = jnp.where(real, features - features[:, :1], 0.0)
  mean = jnp.sum(shifted, axis=1, keepdims=True) / jnp.maximum(1, count)
  centred = jnp.where(real, shifted - mean, 0.0)
  squares = jnp.sum(jnp.square(centred), axis=1, keepdims=True)
  return centred * jax.lax.rsqrt(squares / jnp.maximum(1, count - 1) + _VARIANCE_FLOOR)


def stack_pairs(features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Frames 2t and 2t + 1 side by side.

  A pair is real if its second frame is: the last of an odd number of frames is dropped.

  Args:
    features: [B, T, F].
    mask: bool [B, T], True = real.

  Returns:
    ([B, ceil(T / 2), 2 * F], 0 at padding; mask bool [B, ceil(T / 2)]).
  """
  batch, num_frames, width = features.shape
  odd = num_frames % 2
  mask = jnp.pad(mask, ((0, 0), (0, odd)))[:, 1::2]
  pairs = jnp.pad(features, ((0, 0), (0, odd), (0, 0)))
  pairs = pairs.reshape(batch, mask.shape[1], 2 * width)
  return jnp.where(mask[..., None], pairs, 0), mask
