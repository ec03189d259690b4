"""What a room and a microphone do to clean speech: echo, noise, level, another sampling rate.

Plain NumPy; every function is deterministic in its generator.
"""

import dataclasses

import numpy as np
import soxr

from slm_jax.audio.files import to_int16

# Power spectral density falls as frequency to this power.
NOISE_COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
SPEED_OF_SOUND = 343.0  # m/s


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
  """How likely and how strong each disturbance is."""

  sample_rate: int = 16_000
  noise_probability: float = 0.8
  min_snr_db: float = 10.0
  max_snr_db: float = 30.0
  room_probability: float = 0.5
  # Time in which the echo falls by 60 dB, in seconds.
  min_rt60: float = 0.1
  max_rt60: float = 0.4
  # Level of the loudest sample after everything, relative to full scale.
  min_peak: float = 0.2
  max_peak: float = 0.9
  # Silence around the words, in seconds.
  max_lead: float = 0.15

  def __post_init__(self):
    for name in ("noise_probability", "room_probability"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)} is not a probability")
    for low, high in (
      ("min_snr_db", "max_snr_db"),
      ("min_rt60", "max_rt60"),
      ("min_peak", "max_peak"),
    ):
      if getattr(self, low) > getattr(self, high):
        raise ValueError(f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}")
    if not (0 < self.min_rt60 and 0 < self.min_peak and self.max_peak <= 1 and 0 <= self.max_lead):
      raise ValueError(
        f"rt60 and peaks must be positive, peaks at most 1, max_lead not negative: {self}"
      )


def augment(
  samples: np.ndarray, rate: int, rng: np.random.Generator, config: AugmentationConfig
) -> np.ndarray:
  """Mono speech int16 or float in ±1 [S] at `rate` → int16 at `config.sample_rate`.

  Silence at the ends of the recording is trimmed and replaced by a random lead-in and lead-out, so
  that the noise is heard before the words.

  Raises:
    ValueError: no sample is other than zero.
  """
  speech = to_float(samples)
  heard = np.flatnonzero(np.abs(speech) > 1e-3)
  if not len(heard):
    raise ValueError("the recording is silent")
  speech = speech[heard[0] : heard[-1] + 1]
  if rate != config.sample_rate:
    speech = soxr.resample(speech, rate, config.sample_rate, quality="HQ")
  leads = (rng.uniform(0, config.max_lead, 2) * config.sample_rate).astype(int)
  speech = np.pad(speech, leads)
  if rng.random() < config.room_probability:
    rt60 = rng.uniform(config.min_rt60, config.max_rt60)
    response = room_response(rng, rt60, config.sample_rate)
    speech = convolve(speech, response)[: len(speech)]
  if rng.random() < config.noise_probability:
    colour = list(NOISE_COLOURS)[rng.integers(len(NOISE_COLOURS))]
    snr_db = rng.uniform(config.min_snr_db, config.max_snr_db)
    speech = add_noise(speech, coloured_noise(rng, len(speech), NOISE_COLOURS[colour]), snr_db)
  # The peak is set last: echo and noise may have raised it past full scale.
  peak = rng.uniform(config.min_peak, config.max_peak)
  return to_int16(speech * np.float32(peak / np.abs(speech).max()))


def to_float(samples: np.ndarray) -> np.ndarray:
  """int16 or float samples → float32 in ±1."""
  if samples.dtype == np.int16:
    return samples.astype(np.float32) / 32_768
  return samples.astype(np.float32)


def coloured_noise(rng: np.random.Generator, num_samples: int, exponent: float) -> np.ndarray:
  """float32 [S] of mean power 1 with a power spectral density of 1/f^exponent, 0 at f = 0."""
  size = 1 << (num_samples - 1).bit_length()  # a length with large prime factors would be slow
  spectrum = rng.standard_normal((size // 2 + 1, 2), dtype=np.float32).view(np.complex64)[:, 0]
  frequency = np.arange(len(spectrum), dtype=np.float32)
  frequency[0] = np.inf
  noise = np.fft.irfft(spectrum * frequency ** np.float32(-exponent / 2), size)[:num_samples]
  return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
  """Adds noise [S] at a ratio of mean powers of `snr_db`."""
  power = np.mean(speech**2) / np.mean(noise**2)
  return speech + noise * np.float32(np.sqrt(power * 10 ** (-snr_db / 10)))


def room_response(rng: np.random.Generator, rt60: float, sample_rate: int) -> np.ndarray:
  """A room's impulse response, float32: direct sound, a few early reflections, a decaying tail.

  The tail's amplitude falls as 10^(-3 t / rt60), the definition of the reverberation time (Polack's
  model). Distances of the reflections are drawn for a room of 2 to 8 m.
  """
  length = int(rt60 * sample_rate)
  time = np.arange(length, dtype=np.float32) / sample_rate
  tail = rng.standard_normal(length, dtype=np.float32) * 10 ** (-3 * time / np.float32(rt60))
  mixing = int(0.02 * sample_rate)  # before it the reflections are still single echoes
  tail[:mixing] = 0
  tail *= rng.uniform(0.1, 0.4) / np.sqrt(np.sum(tail**2) + 1e-12)
  response = tail
  response[0] = 1
  detours = rng.uniform(2.0, 8.0, 4)  # metres farther than the direct path
  for detour in detours:
    delay = int(detour / SPEED_OF_SOUND * sample_rate)
    if delay < length:
      response[delay] += rng.uniform(0.2, 0.6) * rng.choice([-1, 1]) / detour
  return response


def convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
  """Full linear convolution by FFT, float32 [S + R - 1]."""
  length = len(samples) + len(response) - 1
  size = 1 << (length - 1).bit_length()
  product = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
  return np.fft.irfft(product, size)[:length].astype(np.float32)
