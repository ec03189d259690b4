"""Whisper's log-mel (Radford et al., arXiv:2212.04356 §2.2, and the published code).

The waveform is padded with zeros to a window of fixed length, 30 s, and all of it is transformed:
the network was trained to read the silence too. Frames are centred on multiples of the hop, the
window's ends are reflected, the last frame is dropped. Magnitudes are log10 of mel power, raised to
8 below the greatest value of the whole window, then (x + 4) / 4.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.framing import cut_frames, sample_mask, to_float
from slm_jax.audio.mel_filters import mel_filters

_SAMPLE_RATE = 16_000
_FLOOR = 1e-10
_RANGE = 8.0  # decades below the greatest value that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperLogMelConfig:
  """Settings, in samples at 16 kHz."""

  num_mel_bins: int = 80
  fft_size: int = 400
  hop: int = 160
  num_samples: int = 480_000

  def __post_init__(self):
    if min(self.num_mel_bins, self.hop) < 1 or not self.hop <= self.fft_size <= self.num_samples:
      raise ValueError(
        f"num_mel_bins={self.num_mel_bins}, hop={self.hop}, fft_size={self.fft_size}, num_samples="
        f"{self.num_samples}: expected 1 <= hop <= fft_size <= num_samples and at least one bin"
      )
    if self.fft_size % 2 or self.num_samples % (2 * self.hop):
      raise ValueError(
        f"fft_size={self.fft_size}, num_samples={self.num_samples}: expected an even one and a "
        f"multiple of two hops of {self.hop}"
      )

  @property
  def num_frames(self) -> int:
    """Frames of the window, whatever the length of the waveform in it."""
    return self.num_samples // self.hop

  def check(self, num_samples: int) -> None:
    """Raises ValueError for a waveform that is longer than the window."""
    if num_samples > self.num_samples:
      raise ValueError(
        f"a batch of {num_samples} samples is longer than the window of {self.num_samples}; cut the "
        "audio into chunks"
      )


def whisper_log_mel(
  audio: jax.Array, lengths: jax.Array, config: WhisperLogMelConfig
) -> tuple[jax.Array, jax.Array]:
  """Features of the whole window, the silence behind each example included.

  Args:
    audio: int16 or float in [-1, 1], [B, S] at 16 kHz; what lies past the lengths is ignored.
    lengths: int32 [B], in samples.
    config: the settings.

  Returns:
    (features fp32 [B, T, F], T = config.num_frames; mask bool [B, T], True where a frame is centred
    on a real sample).

  Raises:
    ValueError: S is more than config.num_samples.
  """
  num_samples, half = audio.shape[1], config.fft_size // 2
  config.check(num_samples)
  audio = jnp.where(sample_mask(lengths, num_samples), to_float(audio), 0.0)
  audio = jnp.pad(audio, ((0, 0), (0, config.num_samples - num_samples)))
  audio = jnp.pad(audio, ((0, 0), (half, half)), mode="reflect")
  # Frames that begin past S hear nothing: they are not transformed, their power is the floor.
  heard = min(config.num_frames, -(-(num_samples + half) // config.hop))
  frames = cut_frames(audio, window=config.fft_size, hop=config.hop, start=0, num_frames=heard)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.fft_size) / config.fft_size)
  spectrum = jnp.fft.rfft(frames * hann.astype(np.float32))
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  filters = mel_filters(
    num_mel_bins=config.num_mel_bins,
    fft_size=config.fft_size,
    sample_rate=_SAMPLE_RATE,
    min_hz=0.0,
    max_hz=_SAMPLE_RATE / 2,
    scale="slaney",
    area_normalised=True,
  )
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  mel = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
  logs = jnp.log10(jnp.maximum(mel, _FLOOR))
  silent = ((0, 0), (0, config.num_frames - heard), (0, 0))
  logs = jnp.pad(logs, silent, constant_values=np.log10(_FLOOR))
  logs = jnp.maximum(logs, jnp.max(logs, axis=(1, 2), keepdims=True) - _RANGE)
  mask = jnp.arange(config.num_frames)[None] < -(-lengths[:, None] // config.hop)
  return (logs + 4.0) / 4.0, mask
