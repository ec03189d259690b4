"""Slices of row-major arrays in files, read with `preadv`: no mapped pages, and only their own bytes."""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Shorter runs are read together with what lies between them: the kernel reads whole pages anyway.
_MIN_RUN_BYTES = 4096


def read_slice(
  path: Path | str,
  *,
  offset: int,
  shape: Sequence[int],
  dtype: np.dtype,
  index: Sequence[slice],
) -> np.ndarray:
  """One slice of an array that lies in a file in C order.

  Args:
    path: the file.
    offset: where the array starts, in bytes.
    shape, dtype: of the whole array, in this machine's byte order.
    index: for every axis a slice of step 1 within the shape.

  Returns:
    The slice, C-contiguous and writable.

  Raises:
    OSError, ValueError: the file cannot be read, or ends before the slice does.
  """
  sizes = [one.stop - one.start for one in index]
  result = np.empty(sizes, dtype)
  if result.size == 0:
    return result
  partial = [axis for axis, size in enumerate(sizes) if size != shape[axis]]
  axis = partial[-1] if partial else 0
  # Axes after `axis` are whole, so a run covers them and the part of `axis` that is asked for.
  strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
  outer = [range(one.start, one.stop) for one in index[:axis]]
  inner = sum(one.start * stride for one, stride in zip(index[axis:], strides[axis:], strict=True))
  starts = [
    inner + sum(i * stride for i, stride in zip(position, strides[:axis], strict=True))
    for position in itertools.product(*outer)
  ]
  run = result.size // len(starts)
  file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    if len(starts) > 1 and run * dtype.itemsize < _MIN_RUN_BYTES:
      span = np.empty(starts[-1] + run - starts[0], dtype)
      _read_into(file, span, offset + starts[0] * dtype.itemsize)
      byte_strides = [stride * dtype.itemsize for stride in strides]
      result[...] = np.lib.stride_tricks.as_strided(span, sizes, byte_strides)
    else:
      for row, start in zip(result.reshape(len(starts), run), starts, strict=True):
        _read_into(file, row, offset + start * dtype.itemsize)
  finally:
    os.close(file)
  return result


def _read_into(file: int, array: np.ndarray, position: int) -> None:
  """Fills a contiguous `array` from `position` on."""
  buffer = array.reshape(-1).view(np.uint8).data
  while buffer:
    # One call gives at most 2 GiB.
    count = os.preadv(file, [buffer], position)
    if count == 0:
      raise ValueError(f"it ends at byte {position}, {len(buffer)} bytes too early")
    buffer, position = buffer[count:], position + count
