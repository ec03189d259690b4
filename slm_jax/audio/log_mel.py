"""Log-mel features of a batch of waveforms, in JAX, on the device that trains.

Framing. Frame t belongs to samples [t * hop, (t + 1) * hop) and its window is centred on them, so
it reads samples [t * hop - (window - hop) / 2, t * hop + (window + hop) / 2). Samples before the
start and past an example's length read as zero. A waveform of n samples has ceil(n / hop) frames:
each sample is in a frame of its own, and padding never changes a real frame.

Spectrum. Periodic Hann window, power |rfft|^2, Slaney mel filters with area normalisation
(`librosa.filters.mel(htk=False, norm="slaney")`), natural logarithm of max(power, floor), then the
fixed affine map (x - mean) / std. The affine map is a constant of the config, not a statistic of
the batch or of the utterance: neither a neighbour nor padding can reach an example's features.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from slm_jax.audio.framing import cut_frames, sample_mask, to_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMelConfig:
  """Settings in samples, Hz and nats; the mel range is that of Google's public frontends."""

  sample_rate: int = 16_000
  window: int = 400
  hop: int = 160
  fft_size: int = 512
  min_hz: float = 125.0
  max_hz: float = 7600.0
  floor: float = 1e-7
  mean: float = -7.0
  std: float = 4.0

  def __post_init__(self):
    if not self.hop <= self.window <= self.fft_size or (self.window - self.hop) % 2:
      raise ValueError(
        f"hop={self.hop}, window={self.window}, fft_size={self.fft_size}: expected hop <= window "
        f"<= fft_size and an even window - hop"
      )
    if not 0 <= self.min_hz < self.max_hz <= self.sample_rate / 2:
      raise ValueError(
        f"min_hz={self.min_hz}, max_hz={self.max_hz}: expected 0 <= min_hz < max_hz <= "
        f"{self.sample_rate / 2}"
      )
    if self.floor <= 0 or self.std <= 0:
      raise ValueError(f"floor={self.floor}, std={self.std}: both must be positive")

  def num_frames(self, num_samples: int) -> int:
    """Frames of a waveform of `num_samples` samples."""
    return -(-num_samples // self.hop)


@functools.cache
def mel_filters(config: LogMelConfig, num_mel_bins: int) -> np.ndarray:
  """Mel filterbank, fp32 [fft_size // 2 + 1, num_mel_bins].

  Raises ValueError if a filter covers no FFT bin.
  """
  filters = librosa.filters.mel(
    sr=config.sample_rate,
    n_fft=config.fft_size,
    n_mels=num_mel_bins,
    fmin=config.min_hz,
    fmax=config.max_hz,
  )
  empty = np.flatnonzero(filters.max(axis=1) == 0)
  if empty.size:
    raise ValueError(
      f"{empty.size} of {num_mel_bins} mel filters cover no FFT bin at fft_size={config.fft_size}; "
      f"raise fft_size or lower num_mel_bins"
    )
  return filters.T.astype(np.float32)


def log_mel(
  audio: jax.Array, lengths: jax.Array, *, num_mel_bins: int, config: LogMelConfig
) -> tuple[jax.Array, jax.Array]:
  """Log-mel features.

  Args:
    audio: int16 or float in [-1, 1], [B, S] at `config.sample_rate`; what lies past the lengths is
      ignored.
    lengths: int32 [B], in samples.
    num_mel_bins: F.
    config: the settings.

  Returns:
    (features fp32 [B, T, F], 0 at padding; mask bool [B, T], True = real), T =
    config.num_frames(S).
  """
  audio = jnp.where(sample_mask(lengths, audio.shape[1]), to_float(audio), 0.0)
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
  frames = cut_frames(
    audio,
    window=config.window,
    hop=config.hop,
    start=-(config.window - config.hop) // 2,
    num_frames=config.num_frames(audio.shape[1]),
  )
  frames = frames * window.astype(np.float32)
  spectrum = jnp.fft.rfft(frames, n=config.fft_size)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  mel = jnp.matmul(power, mel_filters(config, num_mel_bins), precision=jax.lax.Precision.HIGHEST)
  features = (jnp.log(jnp.maximum(mel, config.floor)) - config.mean) / config.std
  num_real = -(-lengths // config.hop)
  mask = jnp.arange(features.shape[1])[None] < num_real[:, None]
  return features * mask[..., None], mask
