"""Log-mel of NVIDIA's Parakeet (NeMo's frontend), normalised over each example.

Pre-emphasis x[t] - c x[t - 1]; frame t centred on sample t * hop, zeros beyond both ends; symmetric
Hann window, power |rfft|^2, Slaney mel filters with area normalisation, log(x + 2^-24). Every bin is
then normalised to mean 0 and deviation 1 over the example's own frames (dividing by one less than
their number). n samples give floor(n / hop) frames.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.framing import cut_frames, sample_mask, to_float
from slm_jax.audio.mel_filters import mel_filters

_LOG_GUARD = 2.0**-24
_DEVIATION_GUARD = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParakeetLogMelConfig:
  """Settings, in samples and Hz."""

  num_mel_bins: int = 80
  sample_rate: int = 16_000
  window: int = 400
  hop: int = 160
  fft_size: int = 512
  pre_emphasis: float = 0.97

  def __post_init__(self):
    if min(self.num_mel_bins, self.hop) < 1 or not 2 <= self.window <= self.fft_size:
      raise ValueError(
        f"num_mel_bins={self.num_mel_bins}, hop={self.hop}, window={self.window}, fft_size="
        f"{self.fft_size}: expected positive numbers and 2 <= window <= fft_size"
      )
    if self.fft_size % 2:
      raise ValueError(f"fft_size={self.fft_size}: expected an even number")

  def num_frames(self, num_samples):
    """Frames of a waveform of `num_samples` samples, an int or an int32 array."""
    return num_samples // self.hop


def parakeet_log_mel(
  audio: jax.Array, lengths: jax.Array, config: ParakeetLogMelConfig
) -> tuple[jax.Array, jax.Array]:
  """Normalised log-mel features.

  The bins of an example with a single frame are 0, as are those that never change.

  Args:
    audio: int16 or float in [-1, 1], [B, S]; what lies past the lengths is ignored.
    lengths: int32 [B], in samples.
    config: the settings.

  Returns:
    (features fp32 [B, T, F], 0 at padding; mask bool [B, T], True = real), T =
    config.num_frames(S).
  """
  num_samples = audio.shape[1]
  num_frames = config.num_frames(num_samples)
  audio = to_float(audio)
  before = jnp.pad(audio, ((0, 0), (1, 0)))[:, :num_samples]
  # Masked after the filter: the first sample of padding would hold an echo of the last real one.
  audio = jnp.where(sample_mask(lengths, num_samples), audio - config.pre_emphasis * before, 0.0)
  # Fourier frames are centred on multiples of the hop, and the window in the Fourier frame.
  start = (config.fft_size - config.window) // 2 - config.fft_size // 2
  frames = cut_frames(
    audio, window=config.window, hop=config.hop, start=start, num_frames=num_frames
  )
  spectrum = jnp.fft.rfft(frames * np.hanning(config.window).astype(np.float32), n=config.fft_size)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  filters = mel_filters(
    num_mel_bins=config.num_mel_bins,
    fft_size=config.fft_size,
    sample_rate=config.sample_rate,
    min_hz=0.0,
    max_hz=config.sample_rate / 2,
    scale="slaney",
    area_normalised=True,
  )
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  logs = jnp.log(jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST) + _LOG_GUARD)
  mask = jnp.arange(num_frames)[None] < config.num_frames(lengths)[:, None]
  return _normalised(logs, mask), mask


def _normalised(logs: jax.Array, mask: jax.Array) -> jax.Array:
  """Every bin of [B, T, F] with mean 0 and deviation 1 over its real frames; padding becomes 0."""
  real = mask[..., None]
  count = real.sum(axis=1, keepdims=True)
  # Counted from the first frame: silence, which never changes, is then 0 and not rounding errors.
  logs = jnp.where(real, logs - logs[:, :1], 0.0)
  logs = jnp.where(real, logs - logs.sum(axis=1, keepdims=True) / jnp.maximum(count, 1), 0.0)
  variance = jnp.square(logs).sum(axis=1, keepdims=True) / jnp.maximum(count - 1, 1)
  return logs / (jnp.sqrt(variance) + _DEVIATION_GUARD)
