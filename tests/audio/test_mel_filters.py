"""Filterbanks equal those of Transformers and librosa."""

import librosa
import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from slm_jax.audio.mel_filters import mel_filters


@pytest.mark.parametrize("scale", ["htk", "slaney", "kaldi"])
@pytest.mark.parametrize(
  ("area_normalised", "triangles_in_mel"), [(False, False), (True, False), (False, True)]
)
def test_against_transformers(scale, area_normalised, triangles_in_mel):
  ours = mel_filters(
    num_mel_bins=80, fft_size=512, sample_rate=16_000, min_hz=20.0, max_hz=8000.0, scale=scale,
    area_normalised=area_normalised, triangles_in_mel=triangles_in_mel,
  )  # fmt: skip
  theirs = mel_filter_bank(
    num_frequency_bins=257, num_mel_filters=80, min_frequency=20.0, max_frequency=8000.0,
    sampling_rate=16_000, norm="slaney" if area_normalised else None, mel_scale=scale,
    triangularize_in_mel_space=triangles_in_mel,
  )  # fmt: skip
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_against_librosa():
  ours = mel_filters(
    num_mel_bins=128, fft_size=1024, sample_rate=16_000, min_hz=125.0, max_hz=7600.0,
    scale="slaney", area_normalised=True,
  )  # fmt: skip
  theirs = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=128, fmin=125.0, fmax=7600.0)
  np.testing.assert_allclose(ours, theirs.T, atol=1e-6)
