"""T5-family language models from and to T5X checkpoints.

Parameter names are T5X's. Its stacks come in three forms, all read: a folder of parameters for each
layer, `encoder/layers_0/…` (T5 1.1, mT5, Flan-T5); stacks on axis 1 under `encoder/encoder/…`
(umT5, in T5X's scalable_t5); and stacks on axis 1 under `encoder/layers/…`. Kernels of attention may
have heads and head width as one axis or as two.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from slm_jax.errors import UserError
from slm_jax.interop import t5x_format
from slm_jax.interop.safetensors_folder import check_dtype, result_dtype
from slm_jax.interop.stored_parameter import FLOAT_TYPES, StoredParameter, StoredTensor
from slm_jax.interop.t5x_config import evident, infer_config, leave_config
from slm_jax.models.t5 import T5Config, abstract_params

_SIDES = ("encoder", "decoder")
_READABLE_TYPES = (*FLOAT_TYPES, "float64")


def open_t5x_language_model(
  path: Path | str, config: T5Config | None = None, *, dtype: str | None = None
) -> tuple[T5Config, dict[str, StoredParameter]]:
  """Config and parameters, by path, of a T5X checkpoint; the optimiser's state is left alone.

  Args:
    path: the folder `checkpoint_<step>`, local or gs://bucket/…, in T5X's own layout or in Orbax's.
    config: the model's shape; None takes what names and shapes tell, and the activations of the
      config.gin that T5X leaves beside its checkpoints.
    dtype: "float32", "bfloat16" or "float16" casts the weights; None keeps the file's types.

  Raises:
    UserError: not a checkpoint, or arrays are missing, surplus or mis-shaped, or without a config
      they do not tell what model they are.
  """
  check_dtype(dtype)
  stored = t5x_format.open_target(path)
  config = config or infer_config(path, {name: tensor.shape for name, tensor in stored.items()})
  sources = _sources(config, stored)
  _check(path, config, stored, sources)
  parameters = {}
  for name, source in sources.items():
    tensors = tuple(stored[one] for one in source.names)
    stacked = "axis1" if source.scanned else "apart"
    parameters[name] = StoredParameter(
      shape=source.shape,
      dtype=result_dtype(tensors, dtype),
      tensors=tensors,
      layers=stacked if "/layers/" in name else "none",
      heads=(_heads_axis(name), config.head_dim) if len(source.accepted) > 1 else None,
    )
  return config, parameters


def save_t5x_checkpoint(
  path: Path | str,
  config: T5Config,
  params: Mapping,
  step: int,
  *,
  report: Callable[[int], None] | None = None,
) -> Path:
  """Writes `path`/checkpoint_<step> in T5X's own layout, one folder of parameters for each layer.

  With `per_layer_relpos` attention kernels have two axes for heads and head width, as T5X's
  scalable_t5 (scan_layers=False) has them, else one, as its minimal T5. There is no optimiser
  state, as in what T5X saves of an InferenceState.

  Args:
    path: folder of checkpoints, created if missing; gets a config.gin too if the activations are not
      those of the released models.
    params: nested dict, as T5 creates them (unboxed), of arrays or `StoredParameter`s, each of
      which is in memory when its turn comes.
    report: told the bytes of every array when it is written.

  Returns:
    The new folder. It appears, whole, at the end.

  Raises:
    UserError: the folder exists; stored parameters are damaged; the config has what no T5X checkpoint
      can say.
    ValueError: parameters do not fit the config, or step is negative.
  """
  if step < 0:
    raise ValueError(f"step={step}: expected at least 0")
  leaves: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  expected = _shapes(config)
  if (actual := {name: tuple(leaf.shape) for name, leaf in leaves.items()}) != expected:
    different = sorted(set(actual.items()) ^ set(expected.items()))
    raise ValueError(f"parameters do not fit the config: {different[:4]}")
  leave_config(Path(path), config)
  return t5x_format.write_target(path, _unstacked(config, leaves), step, report=report)


def _unstacked(config: T5Config, leaves: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Every layer's parameters under its own name; one of `leaves` is in memory at a time."""
  for name, leaf in leaves.items():
    side, _, rest = name.partition("/layers/")
    array = np.asarray(leaf)
    if not rest:
      yield name, array
      continue
    joined, *split = _layer_shapes(config, rest, array.shape[1:])
    shape = split[0] if split and config.per_layer_relpos else joined
    for layer, one in enumerate(array):
      yield f"{side}/layers_{layer}/{rest}", one.reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
  """Where a parameter of shape `shape` lies: in one array, or in one for each layer.

  `accepted` are the shapes that each array may have; `scanned` means layers on its axis 1.
  """

  shape: tuple[int, ...]
  names: tuple[str, ...]
  accepted: tuple[tuple[int, ...], ...]
  scanned: bool = False


def _shapes(config: T5Config) -> Mapping[str, tuple[int, ...]]:
  """Shape of every parameter that the model creates, by path."""
  flat = traverse_util.flatten_dict(nn.unbox(abstract_params(config)), sep="/")
  return {name: leaf.shape for name, leaf in flat.items()}  # pyright: ignore[reportAttributeAccessIssue]


def _sources(cfg: T5Config, stored: Mapping[str, StoredTensor]) -> dict[str, _Source]:
  stacks = {side: _stack_name(side, stored) for side in _SIDES}
  sources = {}
  for name, shape in _shapes(cfg).items():
    side, _, rest = name.partition("/layers/")
    if not rest:
      sources[name] = _Source(shape=shape, names=(name,), accepted=(shape,))
      continue
    length, accepted = shape[0], _layer_shapes(cfg, rest, shape[1:])
    if stacks[side] is None:
      names = tuple(f"{side}/layers_{i}/{rest}" for i in range(length))
      sources[name] = _Source(shape=shape, names=names, accepted=accepted)
    else:
      stacked = tuple((one[0], length, *one[1:]) for one in accepted)
      names = (f"{side}/{stacks[side]}/{rest}",)
      sources[name] = _Source(shape=shape, names=names, accepted=stacked, scanned=True)
  return sources


def _stack_name(side: str, stored: Mapping[str, StoredTensor]) -> str | None:
  """Name of the module whose parameters are stacked, None where each layer has its own."""
  for name in (side, "layers"):
    if any(key.startswith(f"{side}/{name}/") for key in stored):
      return name
  return None


def _heads_axis(name: str) -> int:
  """Axis of one layer's kernel on which heads and head width stand."""
  return 0 if name.endswith("out/kernel") else 1


def _layer_shapes(cfg: T5Config, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
  """Shapes that a parameter of one layer may have: ours, then with heads and width apart."""
  heads = (cfg.num_heads, cfg.head_dim)
  if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
    return shape, (cfg.emb_dim, *heads)
  if name.endswith("out/kernel"):
    return shape, (*heads, cfg.emb_dim)
  return (shape,)


def _check(
  path: Path | str,
  config: T5Config,
  stored: Mapping[str, StoredTensor],
  sources: Mapping[str, _Source],
) -> None:
  accepted = {name: source.accepted for source in sources.values() for name in source.names}
  missing = sorted(accepted.keys() - stored.keys())
  surplus = sorted(stored.keys() - accepted.keys())
  both = sorted(accepted.keys() & stored.keys())
  wrong = [
    f"{name} is {list(stored[name].shape)}, expected {list(accepted[name][0])}"
    for name in both
    if stored[name].shape not in accepted[name]
  ]
  types = [
    f"{name} is {stored[name].dtype}" for name in both if stored[name].dtype not in _READABLE_TYPES
  ]
  problems = [
    f"{text.format(len(names))}: {t5x_format.some(names)}"
    for text, names in (
      ("it lacks {} tensors", missing),
      ("it holds {} tensors that the config has no place for", surplus),
      ("{} tensors are mis-shaped", wrong),
      (f"{{}} tensors are of none of the types {list(_READABLE_TYPES)}", types),
    )
    if names
  ]
  if not problems:
    return
  if any(name.endswith("uint16") for name in types):
    problems.append("uint16 was bfloat16 before version 3; save the checkpoint with a newer T5X")
  differences = [
    f"{field}={value} where the config has {getattr(config, field)}"
    for field, value in evident({name: array.shape for name, array in stored.items()}).items()
    if getattr(config, field) != value
  ]
  if differences:
    problems.append(f"the checkpoint seems to have {', '.join(differences)}")
  raise UserError(f"{path} does not fit the config: {'; '.join(problems)}")
