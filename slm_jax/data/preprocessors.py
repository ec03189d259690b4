"""SeqIO preprocessors of the project's tasks: PCM bytes to samples, text fields to tokens."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf


def decode_pcm(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """`audio`: little-endian PCM16 bytes → int16 [S]."""

  def decode(example):
    return {**example, "audio": tf.io.decode_raw(example["audio"], tf.int16)}

  return dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize_fields(fields: Mapping[str, Sequence[str]]):
  """A preprocessor that makes token features of text fields.

  Each feature's fields are tokenised one by one and concatenated: the tokens of a sentence followed
  by those of an instruction, as if the sentence had been spoken. `<feature>_pretokenized` keeps the
  texts, joined by a space.

  Args:
    fields: feature name → names of the text fields it is made of, in order.
  """
  return functools.partial(_tokenize_fields, fields={name: tuple(f) for name, f in fields.items()})


def _tokenize_fields(
  dataset: tf.data.Dataset,
  output_features: Mapping[str, Any],
  *,
  fields: Mapping[str, tuple[str, ...]],
) -> tf.data.Dataset:
  def tokenize(example):
    added = {}
    for feature, names in fields.items():
      encode = output_features[feature].vocabulary.encode_tf
      added[feature] = tf.concat([encode(example[name]) for name in names], axis=0)
      added[f"{feature}_pretokenized"] = tf.strings.join([example[name] for name in names], " ")
    return {**example, **added}

  return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)
