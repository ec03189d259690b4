"""Batches of similar lengths: a few declared shapes instead of one, so that less of each batch is padding."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

# Model features cut along their length with each task feature.
MODEL_FEATURES = {
  "audio": ("audio",),
  "inputs": ("encoder_input_tokens",),
  "targets": ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"),
}
# Shifted to the right, so that the last target stands one position behind the row's length.
_ONE_LONGER = ("decoder_input_tokens",)

Buckets = Sequence[Mapping[str, int]]
Row = dict[str, np.ndarray]


def check(buckets: Buckets, lengths: Mapping[str, int]) -> None:
  """Raises ValueError unless buckets name the task's features, can all be used, and end at the longest lengths."""
  for i, bucket in enumerate(buckets):
    if set(bucket) != set(lengths):
      raise ValueError(f"length_buckets: {dict(bucket)} must name exactly {sorted(lengths)}")
    for earlier in buckets[:i]:
      if holds(earlier, bucket):
        raise ValueError(
          f"length_buckets: {dict(bucket)} is never used, {dict(earlier)} stands before it and holds "
          "the same rows"
        )
  if buckets and dict(buckets[-1]) != dict(lengths):
    raise ValueError(f"the last of length_buckets must be TASK_FEATURE_LENGTHS {dict(lengths)}")


def holds(larger: Mapping[str, int], smaller: Mapping[str, int]) -> bool:
  """Whether every row that fits into the second bucket fits into the first."""
  return all(smaller[name] <= larger[name] for name in larger)


def first_that_holds(sizes: np.ndarray, buckets: Buckets) -> np.ndarray:
  """int [N]: the bucket of each row, the number of buckets if none holds it.

  Args:
    sizes: int [N, number of features], in the order of the buckets' names.
    buckets: in the order in which they are tried.
  """
  limits = np.asarray([list(bucket.values()) for bucket in buckets])
  fits = np.all(sizes[:, None] <= limits, axis=2)  # [N, number of buckets]
  return np.where(fits.any(axis=1), fits.argmax(axis=1), len(buckets))


def cut_to_size(row: dict[str, tf.Tensor], sizes: tf.Tensor, names: Sequence[str]) -> dict:
  """A row of a feature converter without its padding.

  Args:
    row: model features, each as long as its declared length.
    sizes: int [number of names], real lengths.
    names: of the task features that `sizes` tells of.
  """
  cut = dict(row)
  for i, name in enumerate(names):
    for field in MODEL_FEATURES[name]:
      cut[field] = row[field][: sizes[i] + (field in _ONE_LONGER)]
  return cut


def join(rows: Sequence[Row | None], bucket: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Field name → array [number of rows, …], padded with 0 to a bucket that holds all rows.

  None is a row of nothing but padding; not all rows are.
  """
  cut = {field: bucket[name] for name in bucket for field in MODEL_FEATURES[name]}
  joined = {}
  for field, first in next(row for row in rows if row is not None).items():
    shape = (cut[field],) if field in cut else first.shape
    joined[field] = np.zeros((len(rows), *shape), first.dtype)
    for i, row in enumerate(rows):
      if row is None:
        continue
      if field in cut:
        part = row[field][: cut[field]]
        joined[field][i, : len(part)] = part
      else:
        joined[field][i] = row[field]
  return joined


def choose(
  counts: np.ndarray, oldest: np.ndarray, buckets: Buckets, share_rows: int, patience: int
) -> int | None:
  """The bucket of the next batch, or None while more rows have to be read.

  That with the most rows waiting in the share that has least of it, if all shares have enough. A row
  that has waited too long goes first: its batch is the first bucket that holds it and that all
  shares can fill, with rows of smaller buckets where there are not enough.

  Args:
    counts: int [shares, buckets], rows that wait.
    oldest: int [shares, buckets], rows that the share has read since the bucket's first was; -1 for
      none.
    buckets: as of `check`.
    share_rows: rows of each share in a batch.
    patience: how many rows a share may read while a row waits.
  """
  if oldest.max() > patience:
    late = buckets[int(oldest.argmax()) % len(buckets)]
    for i, bucket in enumerate(buckets):
      fitting = [holds(bucket, other) for other in buckets]
      if holds(bucket, late) and (counts[:, fitting].sum(axis=1) >= share_rows).all():
        return i
    return None
  fullest = int(counts.min(axis=0).argmax())
  return fullest if counts[:, fullest].min() >= share_rows else None
