"""Other shapes of stored tensors: still unread, sliced through to the file."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from slm_jax.interop.stored_parameter import Index, StoredTensor


def permuted(tensor: StoredTensor, axes: Sequence[int]) -> StoredTensor:
  """The tensor with its axes in another order, as `np.transpose` counts them."""
  axes = tuple(axes)
  back = np.argsort(axes)

  def load(index: Index) -> np.ndarray:
    return tensor.load(tuple(index[i] for i in back)).transpose(axes)

  shape = tuple(tensor.shape[axis] for axis in axes)
  return dataclasses.replace(tensor, shape=shape, load=load, chunk=None, keeps_chunk=False)


def squeezed(tensor: StoredTensor, axis: int) -> StoredTensor:
  """The tensor without an axis of size 1."""
  axis %= len(tensor.shape)
  shape = tensor.shape[:axis] + tensor.shape[axis + 1 :]

  def load(index: Index) -> np.ndarray:
    return tensor.load((*index[:axis], slice(0, 1), *index[axis:])).squeeze(axis)

  return dataclasses.replace(tensor, shape=shape, load=load, chunk=None, keeps_chunk=False)


def rows_of(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
  """Rows start … stop - 1 of axis 0."""

  def load(index: Index) -> np.ndarray:
    first = slice(index[0].start + start, index[0].stop + start)
    return tensor.load((first, *index[1:]))

  shape = (stop - start, *tensor.shape[1:])
  return dataclasses.replace(tensor, shape=shape, load=load, chunk=None, keeps_chunk=False)
