"""Float parameters read from their files as int8, one block at a time."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from slm_jax.interop.stored_parameter import Index, StoredParameter
from slm_jax.models.quantization import SCALE_SUFFIX, quantize, scales

_BLOCK_ELEMENTS = 2**24
# Axis that a product sums over, by the last name of a parameter's path: a token embedding is looked
# up by row, and is a kernel only when transposed.
_SUMMED_AXIS = {"kernel": -2, "embedding": -1}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedParameter:
  """The int8 values of a stored parameter, or its fp32 scales; looks like a `StoredParameter`.

  Attributes:
    source: the floats.
    axis: the axis that a product sums over, negative; along it values share a scale.
    part: which of the two this is.
  """

  source: StoredParameter
  axis: int
  part: Literal["values", "scale"]

  @property
  def shape(self) -> tuple[int, ...]:
    shape = self.source.shape
    if self.part == "values":
      return shape
    axis = len(shape) + self.axis
    return shape[:axis] + shape[axis + 1 :]

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.int8 if self.part == "values" else np.float32)

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return int(np.prod(self.shape))

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    array = self.read(tuple(slice(0, size) for size in self.shape))
    return array if dtype is None else array.astype(dtype, copy=False)

  def read(self, index: Index) -> np.ndarray:
    """A slice. Scales need all that is summed over, so values are read with it whole.

    Raises:
      DamagedWeights: values are NaN or infinite.
      UserError: the file is damaged.
    """
    axis = len(self.source.shape) + self.axis
    ranges = [slice(*one.indices(size)[:2]) for one, size in zip(index, self.shape, strict=True)]
    wanted = slice(None)
    if self.part == "values":
      wanted, ranges[axis] = ranges[axis], slice(0, self.shape[axis])
    else:
      ranges.insert(axis, slice(0, self.source.shape[axis]))
    sizes = [one.stop - one.start for one in ranges]
    along = (slice(None),) * axis
    whole = np.empty([n for i, n in enumerate(sizes) if i != axis], np.float32)
    if self.part == "values":
      whole = np.empty(sizes, np.int8)[(*along, wanted)]
    for place, block in _blocks(self.source, ranges, axis):
      scale = scales(np.abs(block).max(axis=axis, initial=0))
      if self.part == "values":
        whole[place] = quantize(block, np.expand_dims(scale, axis))[(*along, wanted)]
      else:
        whole[place[:axis] + place[axis + 1 :]] = scale
    return whole


def _blocks(
  source: StoredParameter, ranges: list[slice], summed: int
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
  """(where, fp32 content) of pieces of the slice, each whole along `summed`."""
  # Layers one at a time; a matrix in runs of its outputs.
  split = next(axis for axis in range(len(ranges)) if axis != summed)
  sizes = [one.stop - one.start for one in ranges]
  step = max(1, _BLOCK_ELEMENTS // max(1, int(np.prod(sizes)) // max(1, sizes[split])))
  for start in range(0, sizes[split], step):
    stop = min(sizes[split], start + step)
    first = ranges[split].start
    index = list(ranges)
    index[split] = slice(first + start, first + stop)
    place = [slice(None)] * len(sizes)
    place[split] = slice(start, stop)
    yield tuple(place), source.read(tuple(index)).astype(np.float32)


def quantized(
  parameters: Mapping[str, StoredParameter], shapes: Mapping[str, Any]
) -> dict[str, Any]:
  """Parameters as a model with int8 weights wants them.

  Args:
    parameters: of the float model, by path joined with "/".
    shapes: every parameter of the int8 model, with its dtype, by the same paths.

  Returns:
    By path: for int8 ones two `QuantizedParameter`s, the others as they are.
  """
  result: dict[str, Any] = {}
  for path, parameter in parameters.items():
    if shapes[path].dtype != np.int8:
      result[path] = parameter
      continue
    axis = _SUMMED_AXIS[path.rsplit("/", 1)[-1]]
    result[path] = QuantizedParameter(source=parameter, axis=axis, part="values")
    result[path + SCALE_SUFFIX] = QuantizedParameter(source=parameter, axis=axis, part="scale")
  return result
