"""Log-mel of IBM's Granite-Speech, two frames side by side.

Frame t is centred on sample 160 t, the waveform reflected at both of its own ends; periodic Hann
window, power |rfft|^2, HTK mel filters of height 1, log10(max(x, 1e-10)), raised to 8 below the
greatest value of the example, then x / 4 + 1. n samples give 1 + floor(n / 160) frames, of which an
odd last one is dropped after it was looked at; 256 samples or fewer cannot be reflected, and give
none.

The published extractor pads a batch before it reflects, so what its shorter examples end in depends
on their neighbours; here every example is what it is alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.framing import cut_frames, sample_mask, to_float
from slm_jax.audio.mel_filters import mel_filters

# Samples, and Hz.
SAMPLE_RATE, WINDOW, HOP, FFT_SIZE = 16_000, 400, 160, 512
_HALF = WINDOW // 2
_FLOOR = 1e-10
_RANGE = 8.0  # decades below the greatest value that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteSpeechLogMelConfig:
  """The one setting that models choose."""

  num_mel_bins: int = 80

  def __post_init__(self):
    if self.num_mel_bins < 1:
      raise ValueError(f"num_mel_bins={self.num_mel_bins}: expected at least 1")


def num_mel_frames(num_samples):
  """Mel frames of so many samples, an int or an int32 array, an odd last one included."""
  return (num_samples // HOP + 1) * (num_samples > FFT_SIZE // 2)


def _reflected(audio: jax.Array, lengths: jax.Array) -> jax.Array:
  """[B, S], 0 past the lengths -> [B, S + WINDOW], from half a window before the first sample on."""
  audio = jnp.pad(audio, ((0, 0), (0, _HALF)))

  def end(row: jax.Array, length: jax.Array) -> jax.Array:
    last = jax.lax.dynamic_slice(row, (length - 1 - _HALF,), (_HALF,))
    return jax.lax.dynamic_update_slice(row, last[::-1], (length,))

  return jnp.concatenate([audio[:, _HALF:0:-1], jax.vmap(end)(audio, lengths)], axis=1)


def granite_speech_log_mel(
  audio: jax.Array, lengths: jax.Array, config: GraniteSpeechLogMelConfig
) -> tuple[jax.Array, jax.Array]:
  """Pairs of log-mel frames.

  Args:
    audio: int16 or float in [-1, 1], [B, S] at 16 kHz; what lies past the lengths is ignored.
    lengths: int32 [B], in samples.
    config: the settings.

  Returns:
    (features fp32 [B, T, 2 * num_mel_bins], 0 at padding; mask bool [B, T], True = real), T = half
    of num_mel_frames(S), rounded down.
  """
  num_frames = num_mel_frames(audio.shape[1])
  audio = jnp.where(sample_mask(lengths, audio.shape[1]), to_float(audio), 0.0)
  frames = cut_frames(
    _reflected(audio, lengths), window=WINDOW, hop=HOP, start=0, num_frames=num_frames
  )
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
  spectrum = jnp.fft.rfft(frames * hann.astype(np.float32), n=FFT_SIZE)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  filters = mel_filters(
    num_mel_bins=config.num_mel_bins,
    fft_size=FFT_SIZE,
    sample_rate=SAMPLE_RATE,
    min_hz=0.0,
    max_hz=SAMPLE_RATE / 2,
    scale="htk",
  )
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  mel = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
  real = jnp.arange(num_frames)[None] < num_mel_frames(lengths)[:, None]
  logs = jnp.log10(jnp.where(real[..., None], jnp.maximum(mel, _FLOOR), _FLOOR))
  greatest = jnp.max(logs, axis=(1, 2), keepdims=True, initial=np.log10(_FLOOR))
  features = jnp.maximum(logs, greatest - _RANGE) / 4.0 + 1.0
  pairs = num_frames // 2
  features = features[:, : 2 * pairs].reshape(len(audio), pairs, 2 * config.num_mel_bins)
  mask = jnp.arange(pairs)[None] < (num_mel_frames(lengths) // 2)[:, None]
  return jnp.where(mask[..., None], features, 0.0), mask
