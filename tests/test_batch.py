"""Batch: the seam between data and model."""

import numpy as np
import pytest

from slm_jax.batch import Batch


def test_fake_batch_keeps_the_contract():
  batch = Batch.fake(batch_size=3, num_samples=100, prompt_length=4, target_length=5, vocab_size=9)
  assert batch.audio.shape == (3, 100) and batch.audio.dtype == np.int16
  assert batch.audio_lengths.dtype == np.int32 and np.all(batch.audio_lengths <= 100)
  targets, inputs = batch.decoder_target_tokens, batch.decoder_input_tokens
  np.testing.assert_array_equal(inputs[:, 0], 0)
  np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
  np.testing.assert_array_equal(batch.decoder_loss_weights == 0, targets == 0)
  assert batch.size == 3


def test_fake_batch_is_a_function_of_its_seed():
  def make(seed):
    return Batch.fake(
      batch_size=2, num_samples=9, prompt_length=2, target_length=2, vocab_size=9, seed=seed
    )

  np.testing.assert_array_equal(make(1).audio, make(1).audio)
  assert not np.array_equal(make(1).audio, make(2).audio)


def test_unknown_field_is_refused():
  with pytest.raises(TypeError, match="sound"):
    Batch.from_dict({"sound": np.zeros(3)})
