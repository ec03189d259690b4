"""Log-mel of Gemma's audio towers, after USM's (arXiv:2303.01037): magnitudes, HTK's mel scale.

Frame t begins `lead` samples before sample t * hop. Each frame is pre-emphasised by itself, then
weighted with a periodic Hann window; features are log(max(|rfft| @ filters, floor)), or with
`floor_added` log(|rfft| @ filters + floor).

A waveform has the frames whose window + 1 samples lie in it, once it has been filled up with zeros to
a multiple of `padded_to` samples. Those are the frames of transformers' extractors for one waveform
alone. Gemma 3n's gives a waveform up to three more where a longer one stands beside it in the batch;
here neighbours change nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.framing import cut_frames, sample_mask, to_float
from slm_jax.audio.mel_filters import mel_filters


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaLogMelConfig:
  """Settings in samples and Hz; see the module. The defaults are Gemma 3n's.

  `preemphasis` p takes from every sample p times the one before it. With `preemphasis_in_frame`, HTK's
  way, a frame's first sample has none before it and is weighted with 1 - p; without, the frame is one
  sample longer and its first sample serves as the one before only.
  """

  num_mel_bins: int = 128
  sample_rate: int = 16_000
  window: int = 512
  hop: int = 160
  fft_size: int = 1024
  lead: int = 0
  padded_to: int = 128
  min_hz: float = 125.0
  max_hz: float = 7600.0
  preemphasis: float = 0.97
  preemphasis_in_frame: bool = True
  floor: float = 1e-5
  floor_added: bool = False

  def __post_init__(self):
    if (
      min(self.num_mel_bins, self.hop, self.padded_to) < 1 or not 2 <= self.window <= self.fft_size
    ):
      raise ValueError(
        f"num_mel_bins={self.num_mel_bins}, hop={self.hop}, padded_to={self.padded_to}, window="
        f"{self.window}, fft_size={self.fft_size}: expected positive numbers and 2 <= window <= "
        "fft_size"
      )
    if not 0 <= self.lead <= self.window or self.fft_size % 2:
      raise ValueError(
        f"lead={self.lead}, fft_size={self.fft_size}: expected 0 to window={self.window}, and an "
        "even number"
      )
    if not 0 <= self.min_hz < self.max_hz <= self.sample_rate / 2:
      raise ValueError(
        f"min_hz={self.min_hz}, max_hz={self.max_hz}: expected 0 <= min_hz < max_hz <= "
        f"{self.sample_rate / 2}"
      )
    if self.floor <= 0 or not 0 <= self.preemphasis <= 1:
      raise ValueError(
        f"floor={self.floor}, preemphasis={self.preemphasis}: expected more than 0, and 0 to 1"
      )

  def num_frames(self, num_samples):
    """Frames of a waveform of `num_samples` samples, an int or an int32 array."""
    padded = -(-num_samples // self.padded_to) * self.padded_to
    frames = (self.lead + padded - self.window - 1) // self.hop + 1
    return frames * (frames > 0)


# The frontend of transformers' Gemma4AudioFeatureExtractor.
GEMMA4_LOG_MEL = GemmaLogMelConfig(
  window=320,
  fft_size=512,
  lead=160,
  padded_to=1,
  min_hz=0.0,
  max_hz=8000.0,
  preemphasis=0.0,
  floor=1e-3,
  floor_added=True,
)


def gemma_log_mel(
  audio: jax.Array, lengths: jax.Array, config: GemmaLogMelConfig
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
  num_frames, window = config.num_frames(audio.shape[1]), config.window
  audio = jnp.where(sample_mask(lengths, audio.shape[1]), to_float(audio), 0.0)
  frames = cut_frames(
    audio, window=window + 1, hop=config.hop, start=-config.lead, num_frames=num_frames
  )
  if config.preemphasis and not config.preemphasis_in_frame:
    frames = frames[..., 1:] - config.preemphasis * frames[..., :-1]
  elif config.preemphasis:
    first = frames[..., :1] * (1 - config.preemphasis)
    rest = frames[..., 1:-1] - config.preemphasis * frames[..., :-2]
    frames = jnp.concatenate([first, rest], axis=-1)
  else:
    frames = frames[..., :-1]
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
  spectrum = jnp.fft.rfft(frames * hann.astype(np.float32), n=config.fft_size)
  # Not jnp.abs: it guards against overflow, at several times the cost.
  magnitude = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag))
  filters = mel_filters(
    num_mel_bins=config.num_mel_bins,
    fft_size=config.fft_size,
    sample_rate=config.sample_rate,
    min_hz=config.min_hz,
    max_hz=config.max_hz,
    scale="htk",
  )
  # Highest precision: a TPU would otherwise multiply fp32 in bfloat16 passes.
  mel = jnp.matmul(magnitude, filters, precision=jax.lax.Precision.HIGHEST)
  mel = mel + config.floor if config.floor_added else jnp.maximum(mel, config.floor)
  mask = jnp.arange(num_frames)[None] < config.num_frames(lengths)[:, None]
  return jnp.where(mask[..., None], jnp.log(mel), 0.0), mask
