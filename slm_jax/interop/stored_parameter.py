"""Parameters that still lie in files: shape and type are known, slices are read when asked for."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    chunk: sizes of the regular pieces that are decoded whole; None where a slice costs its own bytes.
    keeps_chunk: `load` remembers the chunk that it decoded last, so that it may be asked for in parts.
  """

  place: str
  shape: tuple[int, ...]
  dtype: str
  load: Callable[[Index], np.ndarray]
  chunk: tuple[int, ...] | None = None
  keeps_chunk: bool = False

  def blocks(
    self, index: Index, whole: int | None = None
  ) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """A slice in pieces of bounded size, chunk by chunk: (where they are in the tensor, their content).

    Larger than a block is only a chunk that `load` does not keep. `whole`: an axis that is not cut.
    """
    chunk = list(self.chunk or (1,) * len(self.shape))
    if whole is not None:
      chunk[whole] = self.shape[whole]
    itemsize = np.dtype(self.dtype).itemsize
    for cell in _cells(index, self._box(chunk)):
      parts: Iterable[tuple[slice, ...]] = (cell,)
      if self.keeps_chunk and math.prod(s.stop - s.start for s in cell) * itemsize > _BLOCK_BYTES:
        least = [self.shape[axis] if axis == whole else 1 for axis in range(len(cell))]
        parts = _cells(cell, self._box(least))
      for part in parts:
        yield part, self.load(part)

  def _box(self, chunk: Sequence[int]) -> list[int]:
    """Sizes of as many chunks as a block has room for, whole rows first."""
    box = list(chunk)
    for axis in reversed(range(len(box))):
      size = math.prod(box) * np.dtype(self.dtype).itemsize
      box[axis] *= max(1, min(_BLOCK_BYTES // max(1, size), -(-self.shape[axis] // box[axis])))
    return box


def _cells(index: Index, sizes: Sequence[int]) -> Iterator[tuple[slice, ...]]:
  """Cuts a slice where a grid of cells of `sizes`, counted from 0, does."""
  cuts = []
  for one, size in zip(index, sizes, strict=True):
    edges = [*range(one.start - one.start % size, one.stop, size), one.stop]
    edges[0] = one.start
    cuts.append([slice(*pair) for pair in itertools.pairwise(edges)])
  yield from itertools.product(*cuts)


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
    split = int(stacked)
    layers, index = index[:split], index[split:]
    target = target if stacked else target[None]
    if self.transposed:
      target, index = np.swapaxes(target, -1, -2), index[::-1]
    axis, width = self.heads or (0, 1)
    apart = self.heads is not None and len(tensor.shape) > len(index) + len(layers)
    asked = index
    if apart:
      heads = slice(index[axis].start // width, -(-index[axis].stop // width))
      asked = (*index[:axis], heads, slice(0, width), *index[axis + 1 :])
    # Where heads lie apart, a piece has them in their full width.
    whole = len(layers) + axis + 1 if apart else None
    for place, block in tensor.blocks((*asked[:1], *layers, *asked[1:]), whole):
      block = self._cast(block)
      if not np.isfinite(block).all():
        return False
      rows = slice(0, 1)
      if stacked:
        rows = slice(place[1].start - layers[0].start, place[1].stop - layers[0].start)
        place = (place[0], *place[2:])
      block = np.moveaxis(block, 1, 0) if stacked else block[None]
      if apart:
        block = block.reshape(*block.shape[: axis + 1], -1, *block.shape[axis + 3 :])
        # Whole heads were read: of the first and the last one maybe only a part is wanted.
        first = place[axis].start * width
        begin = max(first, index[axis].start)
        end = min(first + block.shape[axis + 1], index[axis].stop)
        block = block[(slice(None),) * (axis + 1) + (slice(begin - first, end - first),)]
        place = (*place[:axis], slice(begin, end), *place[axis + 2 :])
      shifted = (
        slice(one.start - all_.start, one.stop - all_.start)
        for one, all_ in zip(place, index, strict=True)
      )
      target[(rows, *shifted)] = block
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
