"""Where torch keeps an encoder's parameters, and in what orientation."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from slm_jax.interop import safetensors_folder as folders
from slm_jax.interop.stored_parameter import StoredParameter, StoredTensor
from slm_jax.interop.tensor_views import permuted, rows_of, squeezed

Form = Literal[
  "same", "linear", "conv1d", "conv2d", "pointwise", "pointwise2d", "depthwise", "depthwise2d"
]
# form -> the torch tensor's shape, given ours.
_TORCH_SHAPE = {
  "same": lambda shape: shape,
  "linear": lambda shape: shape[::-1],  # [out, in] -> [in, out]
  "pointwise": lambda shape: (*shape[::-1], 1),  # [out, in, 1] -> [in, out]
  "pointwise2d": lambda shape: (*shape[::-1], 1, 1),  # [out, in, 1, 1] -> [in, out]
  "conv1d": lambda shape: shape[::-1],  # [out, in, k] -> [k, in, out]
  "depthwise": lambda shape: (shape[1], 1, shape[0]),  # [C, 1, k] -> [k, C]
  "conv2d": lambda shape: (shape[3], shape[2], *shape[:2]),  # [out, in, h, w] -> [h, w, in, out]
  "depthwise2d": lambda shape: (shape[2], 1, *shape[:2]),  # [C, 1, h, w] -> [h, w, C]
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A parameter's place in a torch state dict.

  Attributes:
    name: of the tensor; "{layer}" in it makes the parameter a stack, its axis 0 counting layers.
    form: what kind of torch parameter it is.
    part: (index, count): one of `count` equal pieces of the tensor's axis 0, its outputs, where torch
      keeps several kernels in one.
    first_layer: of a stack: the layer that its index 0 stands for.
  """

  name: str
  form: Form = "same"
  part: tuple[int, int] = (0, 1)
  first_layer: int = 0

  @property
  def stacked(self) -> bool:
    return "{layer}" in self.name


def stored_parameters(
  folder: folders.TensorFolder,
  sources: Mapping[str, Source],
  shapes: Mapping[str, Any],
  dtype: str | None,
  *,
  ignored: Iterable[str] = (),
) -> dict[str, StoredParameter]:
  """Parameters by path, unread.

  Args:
    folder: the tensors.
    sources: of every parameter, by path joined with "/".
    shapes: every parameter's shape-carrying leaf, by the same paths; axis 0 of a stack counts
      layers.
    dtype: type the values are cast to; None keeps the stored one.
    ignored: names of tensors that may be there besides.

  Raises:
    ValueError: `sources` and `shapes` have not the same paths.
    UserError: a tensor is missing, surplus or mis-shaped.
  """
  if different := sorted(sources.keys() ^ shapes.keys()):
    raise ValueError(f"parameters without a source, or sources without a parameter: {different}")
  expected: dict[str, tuple[int, ...]] = {}
  for path, source in sources.items():
    shape = tuple(shapes[path].shape)
    one = shape[1:] if source.stacked else shape
    stored = _TORCH_SHAPE[source.form](one)
    if stored:  # a stack of scalars has none
      stored = (stored[0] * source.part[1], *stored[1:])
    expected |= dict.fromkeys(_names(source, shape), stored)
  folder.check(expected, ignored=ignored)
  return {
    path: _parameter(folder, source, tuple(shapes[path].shape), dtype)
    for path, source in sources.items()
  }


def _names(source: Source, shape: tuple[int, ...]) -> list[str]:
  if not source.stacked:
    return [source.name]
  layers = range(source.first_layer, source.first_layer + shape[0])
  return [source.name.replace("{layer}", str(layer)) for layer in layers]


def _parameter(
  folder: folders.TensorFolder, source: Source, shape: tuple[int, ...], dtype: str | None
) -> StoredParameter:
  found = tuple(_view(folder.tensors[name], source) for name in _names(source, shape))
  return StoredParameter(
    shape=shape,
    dtype=folders.result_dtype(found, dtype),
    tensors=found,
    layers="apart" if source.stacked else "none",
    transposed=source.form in ("linear", "pointwise", "pointwise2d"),
  )


def _view(tensor: StoredTensor, source: Source) -> StoredTensor:
  """The tensor in our orientation, but for matrices: `StoredParameter` transposes those itself."""
  index, count = source.part
  if count > 1:
    size = tensor.shape[0] // count
    tensor = rows_of(tensor, index * size, (index + 1) * size)
  match source.form:
    case "pointwise":
      return squeezed(tensor, 2)
    case "pointwise2d":
      return squeezed(squeezed(tensor, 3), 2)
    case "conv1d":
      return permuted(tensor, (2, 1, 0))
    case "depthwise":
      return permuted(squeezed(tensor, 1), (1, 0))
    case "conv2d":
      return permuted(tensor, (2, 3, 1, 0))
    case "depthwise2d":
      return permuted(squeezed(tensor, 1), (1, 2, 0))
  return tensor
