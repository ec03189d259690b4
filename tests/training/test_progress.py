"""Padding shares of a run's batches, counted on arrays by hand."""

import numpy as np
import pytest

from slm_jax.training.progress import Padding


def batch(width):
  return {
    "audio": np.zeros((2, width), np.int16),
    "audio_lengths": np.array([400, 200]),
    "encoder_input_tokens": np.array([[3, 1], [1, 0]]),
    "decoder_target_tokens": np.array([[3, 1, 0, 0], [4, 4, 4, 1]]),
  }


def test_padding_so_far_of_audio_and_of_the_lms_tokens():
  padding = Padding(lambda samples: samples // 100)
  assert padding.count(batch(400)) == {
    "audio_padding": pytest.approx(1 - 600 / 800),
    "token_padding": pytest.approx(1 - (6 + 3 + 6) / (8 + 4 + 8)),
  }
  assert padding.count(batch(1_200)) == {
    "audio_padding": pytest.approx(1 - 1200 / 3200),
    "token_padding": pytest.approx(1 - 30 / (32 + 8 + 16)),
  }


def test_frames_from_a_cache_count_as_speech():
  arrays = batch(400)
  del arrays["audio"]
  arrays |= {"speech_frames": np.zeros((2, 4, 8)), "speech_frame_lengths": np.array([4, 2])}
  assert Padding().count(arrays) == {
    "audio_padding": pytest.approx(0.25),
    "token_padding": pytest.approx(1 - 15 / 20),
  }


def test_text_has_no_audio_padding():
  arrays = {name: value for name, value in batch(400).items() if not name.startswith("audio")}
  assert Padding().count(arrays) == {"token_padding": pytest.approx(1 - 9 / 12)}
