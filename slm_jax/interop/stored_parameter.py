"""Parameters that still lie in files: shape and type are known, slices are read when asked for."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, so that it is the name of a dtype
import numpy as np

from slm_jax.errors import UserError

FLOAT_TYPES = ("float32", "bfloat16", "float16")
# What is read at once, where rows (or the chunks of a store) are smaller.
_BLOCK_BYTES = 64 * 2**20

Index = tuple[slice, ...]
_Leaf = TypeVar("_Leaf")
_Result = TypeVar("_Result")


class DamagedWeights(UserError):
  """Tensors hold NaN or infinite values; `places` name them, each by file and tensor."""

  def __init__(self, places: Sequence[str]):
    self.places = tuple(places)
    if len(places) == 1:
      message = f"{places[0]} holds values that are NaN or infinite; the weights are damaged"
    else:
      shown = ", ".join(places[:6])
      more = f" and {len(places) - 6} more" if len(places) > 6 else ""
      message = (
        f"{len(places)} tensors hold NaN or infinite values, the weights are damaged: {shown}{more}"
      )
    super().__init__(message)


def map_all(use: Callable[[str, _Leaf], _Result], leaves: Mapping[str, _Leaf]) -> dict[str, Any]:
  """`use(name, leaf)` of every leaf, by name.

  Raises:
    DamagedWeights: of all leaves for which `use` raised it, after the last one.
  """
  results, places = {}, []
  for name, leaf in leaves.items():
    try:
      results[name] = use(name, leaf)
    except DamagedWeights as error:
      places += error.places
  if places:
    raise DamagedWeights(list(dict.fromkeys(places)))
  return results


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
  """A tensor of a file, as it is stored.

  Attributes:
    place: file and name, for messages.
    shape: as stored.
    dtype: name of the type as stored.
    load: reads a slice; raises UserError if the file is damaged.
    chunk_rows: rows of axis 0 that can only be read together.
  """

  place: str
  shape: tuple[int, ...]
  dtype: str
  load: Callable[[Index], np.ndarray]
  chunk_rows: int = 1

  def blocks(self, index: Index) -> Iterator[tuple[slice, np.ndarray]]:
    """A slice in pieces of bounded size: (their rows of axis 0, their content)."""
    if not index:
      yield slice(0, 1), self.load(())
      return
    row_bytes = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
    rows = max(1, _BLOCK_BYTES // max(1, row_bytes * self.chunk_rows)) * self.chunk_rows
    start = index[0].start
    while start < index[0].stop:
      stop = min(index[0].stop, start - start % rows + rows)
      yield slice(start, stop), self.load((slice(start, stop), *index[1:]))
      start = stop


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredParameter:
  """A parameter of a model, in the model's shape, orientation and type.

  `np.asarray` reads the whole; `read` a slice. Both check what they read.

  Attributes:
    shape: of the parameter.
    dtype: the type that values are cast to.
    tensors: one tensor, or one for each layer.
    layers: "none": the parameter has no axis of layers; "apart": axis 0 counts layers, each in a
      tensor of its own; "axis1": one tensor has them on its axis 1, as T5X's stacks do.
    transposed: a tensor is a matrix [out, in] where the parameter has [in, out].
    heads: (axis, width): on this axis of one layer stand heads times width, which a tensor may have
      as two axes.
    scale: factor that values are multiplied by.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  tensors: tuple[StoredTensor, ...]
  layers: Literal["none", "apart", "axis1"] = "none"
  transposed: bool = False
  heads: tuple[int, int] | None = None
  scale: float = 1.0

  def __post_init__(self):
    for tensor in self.tensors:
      if tensor.dtype not in (*FLOAT_TYPES, "float64"):
        raise UserError(
          f"{tensor.place} is {tensor.dtype}, expected one of {[*FLOAT_TYPES, 'float64']}"
        )

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def astype(self, dtype) -> "StoredParameter":
    """The same parameter, read as another type."""
    return dataclasses.replace(self, dtype=np.dtype(dtype))

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    array = self.read()
    return array if dtype is None else array.astype(dtype, copy=False)

  def read(self, index: Index | None = None) -> np.ndarray:
    """A slice, in the model's orientation; at most one block of it is in memory twice.

    Args:
      index: for every axis a slice of step 1; None reads all.

    Returns:
      A new array; of transposed tensors it is a view of one in their own order.

    Raises:
      DamagedWeights: values are NaN or infinite, or are so in the type of the result.
      UserError: the file is damaged.
    """
    ranges = _ranges(index, self.shape)
    sizes = [one.stop - one.start for one in ranges]
    if self.transposed:
      sizes[-2:] = sizes[:-3:-1]
    result = np.empty(sizes, self.dtype)
    whole = np.swapaxes(result, -1, -2) if self.transposed else result
    if result.size == 0:
      return whole
    if self.layers == "apart":
      # With an ellipsis even a stack of scalars gives views.
      targets = [whole[layer, ...] for layer in range(len(whole))]
      jobs = list(zip(self.tensors[ranges[0]], targets, strict=True))
      inner = ranges[1:]
    else:
      jobs, inner = [(self.tensors[0], whole)], ranges
    damaged = [tensor.place for tensor, target in jobs if not self._fill(target, tensor, inner)]
    if damaged:
      raise DamagedWeights(damaged)
    return whole

  def _fill(self, target: np.ndarray, tensor: StoredTensor, index: Index) -> bool:
    """Reads `index` of one tensor into `target`; False if values are not finite."""
    stacked = self.layers == "axis1"
    # From here on `index` is that of one layer, and arrays are [layers, …one layer…].
    layers, index = (index[:1], index[1:]) if stacked else ((), index)
    target = target if stacked else target[None]
    if self.transposed:
      target, index = np.swapaxes(target, -1, -2), index[::-1]
    axis, width = self.heads or (0, 1)
    apart = self.heads is not None and len(tensor.shape) > len(index) + len(layers)
    asked = index
    if apart:
      heads = slice(index[axis].start // width, -(-index[axis].stop // width))
      asked = (*index[:axis], heads, slice(0, width), *index[axis + 1 :])
    for rows, block in tensor.blocks((*asked[:1], *layers, *asked[1:])):
      block = self._cast(block)
      if not np.isfinite(block).all():
        return False
      block = np.moveaxis(block, 1, 0) if stacked else block[None]
      if not index:
        target[...] = block
        continue
      start, stop = rows.start, rows.stop
      if apart:
        block = block.reshape(*block.shape[: axis + 1], -1, *block.shape[axis + 3 :])
        # Whole heads were read: of the first and the last one maybe only a part is wanted.
        first = (rows if axis == 0 else asked[axis]).start * width
        begin, end = max(first, index[axis].start), first + block.shape[axis + 1]
        end = min(end, index[axis].stop)
        block = block[(slice(None),) * (axis + 1) + (slice(begin - first, end - first),)]
        start, stop = (begin, end) if axis == 0 else (start, stop)
      target[:, start - index[0].start : stop - index[0].start] = block
    return True

  def _cast(self, block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
      if self.scale != 1.0:
        block = block.astype(np.float32) * np.float32(self.scale)
      return block.astype(self.dtype, copy=False)


def _ranges(index: Index | None, shape: tuple[int, ...]) -> Index:
  """`index` with whole numbers, checked; ValueError if it steps."""
  if index is None:
    return tuple(slice(0, size) for size in shape)
  if len(index) != len(shape):
    raise ValueError(f"{len(index)} slices for an array of shape {shape}")
  ranges = []
  for one, size in zip(index, shape, strict=True):
    start, stop, step = one.indices(size)
    if step != 1:
      raise ValueError(f"slice {one} has a step; expected 1")
    ranges.append(slice(start, max(start, stop)))
  return tuple(ranges)
