"""Feature converters: exact fields, padding, shift and weights on examples written by hand."""

import numpy as np
import pytest
import tensorflow as tf

from slm_jax.batch import Batch
from slm_jax.data.speech_features import CONVERTERS, SpeechFeatureConverter, converter_for

AUDIO, INPUTS, TARGETS = [5, -6, 7], [11, 12, 1], [21, 0, 22, 1]
LENGTHS = {"audio": 5, "inputs": 4, "targets": 6}
EXPECTED = {
  "audio": [5, -6, 7, 0, 0],
  "audio_lengths": 3,
  "encoder_input_tokens": [11, 12, 1, 0],
  "decoder_input_tokens": [0, 21, 0, 22, 1, 0],
  "decoder_target_tokens": [21, 0, 22, 1, 0, 0],
  "decoder_loss_weights": [1, 1, 1, 1, 0, 0],
}
DTYPES = {
  "audio": np.int16,
  "audio_lengths": np.int32,
  "decoder_loss_weights": np.float32,
}


def dataset():
  example = {"audio": AUDIO, "inputs": INPUTS, "targets": TARGETS, "text": "not for the model"}
  signature = {
    "audio": tf.TensorSpec([None], tf.int16),
    "inputs": tf.TensorSpec([None], tf.int32),
    "targets": tf.TensorSpec([None], tf.int32),
    "text": tf.TensorSpec([], tf.string),
  }
  return tf.data.Dataset.from_generator(lambda: [example], output_signature=signature)


def convert(lengths):
  (row,) = converter_for(lengths)(dataset(), lengths).as_numpy_iterator()
  return row


@pytest.mark.parametrize(
  ("features", "absent"),
  [
    (("audio", "inputs", "targets"), ()),
    (("audio", "targets"), ("encoder_input_tokens",)),
    (("inputs", "targets"), ("audio", "audio_lengths")),
  ],
)
def test_fields_values_and_types(features, absent):
  row = convert({name: LENGTHS[name] for name in features})
  assert set(row) == set(EXPECTED) - set(absent)
  for name, value in row.items():
    assert value.dtype == DTYPES.get(name, np.int32), name
    assert value.tolist() == EXPECTED[name], name
  Batch.from_dict(row)  # every name is a field


def test_longer_than_its_length_is_an_error_not_a_cut():
  with pytest.raises(tf.errors.InvalidArgumentError):
    convert({**LENGTHS, "targets": 3})


def test_unknown_features_and_packing_are_errors():
  with pytest.raises(ValueError, match="video"):
    converter_for({"video", "targets"})
  with pytest.raises(ValueError, match="pack"):
    SpeechFeatureConverter(pack=True)


def test_lengths_of_model_features_cover_every_field():
  for converter in CONVERTERS:
    lengths = {name: LENGTHS[name] for name in converter.TASK_FEATURES}
    assert set(converter().get_model_feature_lengths(lengths)) == set(converter.MODEL_FEATURES)
