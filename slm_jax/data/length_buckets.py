"""Batches of similar lengths: a few declared shapes instead of one, so that less of each batch is padding."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

# Model features cut along their second axis with each task feature.
MODEL_FEATURES = {
  "audio": ("audio",),
  "inputs": ("encoder_input_tokens",),
  "targets": ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"),
}
# Model feature that tells how long a row's task feature is, and how.
_SIZES = {
  "audio": lambda row: row["audio_lengths"],
  "inputs": lambda row: tf.math.count_nonzero(row["encoder_input_tokens"], dtype=tf.int32),
  "targets": lambda row: tf.cast(tf.reduce_sum(row["decoder_loss_weights"]), tf.int32),
}

Buckets = Sequence[Mapping[str, int]]


def check(buckets: Buckets, lengths: Mapping[str, int]) -> None:
  """Raises ValueError unless buckets name the task's features, grow, and end at the longest lengths."""
  for smaller, larger in zip(buckets, buckets[1:], strict=False):
    if any(smaller[name] > larger[name] for name in lengths):
      raise ValueError(f"length_buckets must grow: {dict(smaller)} stands before {dict(larger)}")
  for bucket in buckets:
    if set(bucket) != set(lengths):
      raise ValueError(f"length_buckets: {dict(bucket)} must name exactly {sorted(lengths)}")
  if buckets and dict(buckets[-1]) != dict(lengths):
    raise ValueError(f"the last of length_buckets must be TASK_FEATURE_LENGTHS {dict(lengths)}")


def batch_by_bucket(dataset: tf.data.Dataset, buckets: Buckets, batch_size: int) -> tf.data.Dataset:
  """Batches rows that fall into the same bucket: the first whose every length is long enough.

  Rows stay padded to the longest lengths; `trim` cuts a finished batch to its bucket.
  """
  limits = tf.constant([list(bucket.values()) for bucket in buckets], tf.int32)
  names = list(buckets[0])

  def key(row) -> tf.Tensor:
    sizes = tf.stack([tf.cast(_SIZES[name](row), tf.int32) for name in names])
    fits = tf.reduce_all(sizes[None] <= limits, axis=1)
    return tf.argmax(fits, output_type=tf.int64)

  return dataset.group_by_window(
    key_func=key,
    reduce_func=lambda _, window: window.batch(batch_size, drop_remainder=True),
    window_size=batch_size,
  )


def smallest(arrays: dict[str, np.ndarray], buckets: Buckets) -> int:
  """Index of the first bucket that holds all rows of a batch [B, longest]."""
  sizes = {
    "audio": lambda: arrays["audio_lengths"].max(),
    "inputs": lambda: np.count_nonzero(arrays["encoder_input_tokens"], axis=1).max(),
    "targets": lambda: arrays["decoder_loss_weights"].sum(axis=1).max(),
  }
  longest = {name: int(sizes[name]()) for name in buckets[-1]}
  return next(i for i, b in enumerate(buckets) if all(longest[name] <= b[name] for name in b))


def trim(arrays: dict[str, np.ndarray], bucket: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Cuts a batch [B, longest] to a bucket that holds all its rows."""
  cut = {field: bucket[name] for name in bucket for field in MODEL_FEATURES[name]}
  return {name: x[:, : cut[name]] if name in cut else x for name, x in arrays.items()}
