"""Log-mel of LASR, the frontend of Google's MedASR.

Frame t begins at sample t * hop and is real when all of its samples are; symmetric Hann window, power
|rfft|^2, triangular filters over the mel scale from 125 to 7500 Hz, log(max(x, 1e-5)), no
normalisation. n samples give 1 + floor((n - window) / hop) frames, or none.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.framing import cut_frames, sample_mask, to_float
from slm_jax.audio.mel_filters import mel_filters

_MIN_HZ, _MAX_HZ = 125.0, 7500.0
_FLOOR = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LasrLogMelConfig:
  """Settings, in samples and Hz."""

  num_mel_bins: int = 128
  sample_rate: int = 16_000
  window: int = 400
  hop: int = 160
  fft_size: int = 512

  def __post_init__(self):
    if min(self.num_mel_bins, self.hop) < 1 or not 2 <= self.window <= self.fft_size:
      raise ValueError(
        f"num_mel_bins={self.num_mel_bins}, hop={self.hop}, window={self.window}, fft_size="
        f"{self.fft_size}: expected positive numbers and 2 <= window <= fft_size"
      )
    if self.fft_size % 2 or self.sample_rate < 2 * _MAX_HZ:
      raise ValueError(
        f"fft_size={self.fft_size}, sample_rate={self.sample_rate}: expected an even number, and "
        f"twice {_MAX_HZ} or more"
      )

  def num_frames(self, num_samples):
    """Frames of a waveform of `num_samples` samples, an int or an int32 array."""
    frames = (num_samples - self.window) // self.hop + 1
    return frames * (frames > 0)


def lasr_log_mel(
  audio: jax.Array, lengths: jax.Array, config: LasrLogMelConfig
) -> tuple[jax.Array, jax.Array]:
  """Log-mel features.

  Args:
    audio: int16 or float in [-1, 1], [B, S]; what lies past the lengths is ignored.
    lengths: int32 [B], in samples.
    config: the settings.

  Returns:
    (features fp32 [B, T, F], 0 at padding; mask bool [B, T], True = real), T =
    config.num_frames(S).
  """
  num_frames = config.num_frames(audio.shape[1])
  audio = jnp.where(sample_mask(lengths, audio.shape[1]), to_float(audio), 0.0)
  frames = cut_frames(audio, window=config.window, hop=config.hop, start=0, num_frames=num_frames)
  spectrum = jnp.fft.rfft(frames * np.hanning(config.window).astype(np.float32), n=config.fft_size)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  filters = mel_filters(
    num_mel_bins=config.num_mel_bins,
    fft_size=config.fft_size,
    sample_rate=config.sample_rate,
    min_hz=_MIN_HZ,
    max_hz=_MAX_HZ,
    scale="kaldi",
    triangles_in_mel=True,
  )
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  mel = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
  mask = jnp.arange(num_frames)[None] < config.num_frames(lengths)[:, None]
  return jnp.where(mask[..., None], jnp.log(jnp.maximum(mel, _FLOOR)), 0.0), mask
