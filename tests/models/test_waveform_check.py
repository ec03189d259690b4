"""Waveforms of a wrong shape, type or scale are named; nothing is heard as if it were audio."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from slm_jax.interop import load_speech_encoder
from slm_jax.models.waveform_check import checked_audio

AUDIO = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32) / 4
LENGTHS = [50, 30]


def with_sample(row: int, at: int, value: float) -> np.ndarray:
  audio = AUDIO.copy()
  audio[row, at] = value
  return audio


@pytest.mark.parametrize(
  ("audio", "lengths", "says"),
  [
    (AUDIO[0], LENGTHS, r"audio is \[50\], expected \[B, S\]"),
    (AUDIO[..., None], LENGTHS, r"audio is \[2, 50, 1\]"),
    (AUDIO[:0], [], r"audio is \[0, 50\]"),
    (AUDIO[:, :0], [0, 0], r"audio is \[2, 0\]"),
    (np.ones((2, 50), np.int32), LENGTHS, "audio is int32, expected int16, or float"),
    (np.ones((2, 50), np.uint8), LENGTHS, "audio is uint8"),
    (jnp.ones((2, 50), jnp.int32), LENGTHS, "audio is int32"),
    (AUDIO * 3000, LENGTHS, r"audio\[0\] reaches .* divide what came as int16 by 32768"),
    (with_sample(1, 29, np.nan), LENGTHS, r"audio\[1\] reaches nan"),
    (with_sample(0, 0, -np.inf), LENGTHS, r"audio\[0\] reaches inf"),
    (AUDIO, [50], r"lengths are int64 \[1\], expected whole numbers \[2\]"),
    (AUDIO, 50, r"lengths are int64 \[\]"),
    (AUDIO, [50.0, 30.0], "lengths are float64"),
    (AUDIO, [True, True], "lengths are bool"),
    (AUDIO, [50, 51], r"lengths\[1\] is 51, expected 0 to S = 50"),
    (AUDIO, [-1, 30], r"lengths\[0\] is -1"),
  ],
)
def test_what_is_no_batch_of_waveforms_is_named(audio, lengths, says):
  with pytest.raises(ValueError, match=says) as raised:
    checked_audio(audio, lengths)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "float16", "bfloat16"])
def test_what_is_one_passes_unchanged(dtype):
  audio = (AUDIO * 32768).astype(np.int16) if dtype == "int16" else AUDIO.astype(dtype)
  for given, lengths in ((audio, LENGTHS), (jnp.asarray(audio), jnp.array(LENGTHS, jnp.uint8))):
    found, found_lengths = checked_audio(given, lengths)
    np.testing.assert_array_equal(found, jnp.asarray(audio))
    assert found_lengths.dtype == jnp.int32 and found_lengths.tolist() == LENGTHS


def test_what_lies_past_the_lengths_is_not_looked_at():
  checked_audio(with_sample(1, 30, np.nan), LENGTHS)
  checked_audio(AUDIO.astype(ml_dtypes.bfloat16), np.array([0, 0], np.int64))


def test_an_encoder_looks_before_it_listens():
  encoder = load_speech_encoder("slm_jax/assets/mini/speech_encoder")
  samples = np.ones((1, 800), np.int32)
  for call in (encoder, encoder.features):
    with pytest.raises(ValueError, match="int32"):
      call(samples, [800])
  with pytest.raises(ValueError, match=r"audio is \[1, 800\], expected one waveform"):
    encoder.windows(samples)
