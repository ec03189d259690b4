"""T5-family language models from and to T5X checkpoints.

Parameter names are T5X's. Its stacks come in three forms, all read: a folder of parameters for each
layer, `encoder/layers_0/…` (T5 1.1, mT5, Flan-T5); stacks on axis 1 under `encoder/encoder/…`
(umT5, in T5X's scalable_t5); and stacks on axis 1 under `encoder/layers/…`. Kernels of attention may
have heads and head width as one axis or as two.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from slm_jax.errors import UserError
from slm_jax.interop import t5x_format
from slm_jax.interop.safetensors_folder import check_dtype
from slm_jax.interop.t5x_format import StoredArray
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.t5 import T5, T5Config

_SIDES = ("encoder", "decoder")
_FLOAT_TYPES = ("float32", "bfloat16", "float16", "float64")


def load_t5x_language_model(
  path: Path | str, config: T5Config, *, tokenizer: Any = None, dtype: str | None = None
) -> LanguageModel:
  """Reads the parameters of a T5X checkpoint; the optimiser's state is left alone.

  Args:
    path: the folder `checkpoint_<step>`, local or gs://bucket/…, in T5X's own layout or in Orbax's.
    config: the model's shape, which a checkpoint does not tell.
    tokenizer: SentencePiece processor of the result.
    dtype: "float32", "bfloat16" or "float16" casts the weights; None keeps the file's types.

  Raises:
    UserError: not a checkpoint, or arrays are missing, surplus, mis-shaped or not finite.
  """
  check_dtype(dtype)
  stored = t5x_format.open_target(path)
  sources = _sources(config, stored)
  _check(path, config, stored, sources)
  flat, damaged = {}, []
  for name, source in sources.items():
    flat[name] = _read(source, stored, dtype, damaged)
  if damaged:
    raise UserError(
      f"{path}: {len(damaged)} tensors hold NaN or infinite values, the weights are damaged: "
      f"{t5x_format.some(damaged)}"
    )
  return LanguageModel(config, traverse_util.unflatten_dict(flat, sep="/"), tokenizer)


def save_t5x_checkpoint(path: Path | str, config: T5Config, params: Mapping, step: int) -> Path:
  """Writes `path`/checkpoint_<step> in T5X's own layout, one folder of parameters for each layer.

  With `per_layer_relpos` attention kernels have two axes for heads and head width, as T5X's
  scalable_t5 (scan_layers=False) has them, else one, as its minimal T5. There is no optimiser
  state, as in what T5X saves of an InferenceState.

  Args:
    path: folder of checkpoints, created if missing.
    params: nested dict of arrays as T5 creates them (unboxed).

  Returns:
    The new folder. It appears, whole, at the end.

  Raises:
    UserError: the folder exists.
    ValueError: parameters do not fit the config, or step is negative.
  """
  if step < 0:
    raise ValueError(f"step={step}: expected at least 0")
  arrays = {
    name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
  }
  expected = _shapes(config)
  if (actual := {name: array.shape for name, array in arrays.items()}) != expected:
    different = sorted(set(actual.items()) ^ set(expected.items()))
    raise ValueError(f"parameters do not fit the config: {different[:4]}")
  target = {}
  for name, array in arrays.items():
    side, _, rest = name.partition("/layers/")
    if not rest:
      target[name] = array
      continue
    joined, *split = _layer_shapes(config, rest, array.shape[1:])
    shape = split[0] if split and config.per_layer_relpos else joined
    for layer, one in enumerate(array):
      target[f"{side}/layers_{layer}/{rest}"] = one.reshape(shape)
  return t5x_format.write_target(path, target, step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
  """Where a parameter of shape `shape` lies: in one array, or in one for each layer.

  `accepted` are the shapes that each array may have; `scanned` means layers on its axis 1.
  """

  shape: tuple[int, ...]
  names: tuple[str, ...]
  accepted: tuple[tuple[int, ...], ...]
  scanned: bool = False


@functools.lru_cache(maxsize=8)
def _shapes(config: T5Config) -> Mapping[str, tuple[int, ...]]:
  """Shape of every parameter that the model creates, by path."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  boxed = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens == 0, tokens)
  flat = traverse_util.flatten_dict(nn.unbox(boxed)["params"], sep="/")
  return {name: leaf.shape for name, leaf in flat.items()}  # pyright: ignore[reportAttributeAccessIssue]


def _sources(cfg: T5Config, stored: Mapping[str, StoredArray]) -> dict[str, _Source]:
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


def _stack_name(side: str, stored: Mapping[str, StoredArray]) -> str | None:
  """Name of the module whose parameters are stacked, None where each layer has its own."""
  for name in (side, "layers"):
    if any(key.startswith(f"{side}/{name}/") for key in stored):
      return name
  return None


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
  stored: Mapping[str, StoredArray],
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
    f"{name} is {stored[name].dtype}" for name in both if stored[name].dtype not in _FLOAT_TYPES
  ]
  problems = [
    f"{text.format(len(names))}: {t5x_format.some(names)}"
    for text, names in (
      ("it lacks {} tensors", missing),
      ("it holds {} tensors that the config has no place for", surplus),
      ("{} tensors are mis-shaped", wrong),
      (f"{{}} tensors are of none of the types {list(_FLOAT_TYPES)}", types),
    )
    if names
  ]
  if not problems:
    return
  if any(name.endswith("uint16") for name in types):
    problems.append("uint16 was bfloat16 before version 3; save the checkpoint with a newer T5X")
  differences = [
    f"{field}={value} where the config has {getattr(config, field)}"
    for field, value in _evident({name: array.shape for name, array in stored.items()}).items()
    if getattr(config, field) != value
  ]
  if differences:
    problems.append(f"the checkpoint seems to have {', '.join(differences)}")
  raise UserError(f"{path} does not fit the config: {'; '.join(problems)}")


def _evident(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | bool]:
  """Fields of the config that names and shapes give away, for messages."""

  def first(ending: str) -> tuple[tuple[int, ...], bool]:
    """Shape within one layer of the first such parameter, and whether a layer owns it."""
    for name, shape in sorted(shapes.items()):
      if name.endswith(ending):
        if re.match(r"(\w+)/(\1|layers)/", name):
          return (*shape[:1], *shape[2:]), True
        return shape, "/layers_" in name
    return (), False

  fields: dict[str, int | bool] = {}
  if len(embedding := shapes.get("token_embedder/embedding", ())) == 2:
    fields |= {"vocab_size": embedding[0], "emb_dim": embedding[1]}
    fields["logits_via_embedding"] = "decoder/logits_dense/kernel" not in shapes
  for side in _SIDES:
    layers = {key.split("/")[1] for key in shapes if key.startswith(f"{side}/layers_")}
    stacks = [
      shapes.get(f"{side}/{name}/pre_mlp_layer_norm/scale", ()) for name in (side, "layers")
    ]
    stacked = [shape[1] for shape in stacks if len(shape) == 2]
    if layers or stacked:
      fields[f"num_{side}_layers"] = len(layers) or stacked[0]
  bias, of_layer = first("relpos_bias/rel_embedding")
  if len(bias) == 2:
    fields |= {"num_heads": bias[0], "relpos_num_buckets": bias[1], "per_layer_relpos": of_layer}
  query, _ = first("attention/query/kernel")
  if len(query) == 3:
    fields["head_dim"] = query[2]
  elif len(query) == 2 and len(bias) == 2 and query[1] % bias[0] == 0:
    fields["head_dim"] = query[1] // bias[0]
  output, _ = first("mlp/wo/kernel")
  if len(output) == 2:
    fields["mlp_dim"] = output[0]
  return fields


def _read(
  source: _Source, stored: Mapping[str, StoredArray], dtype: str | None, damaged: list[str]
) -> np.ndarray:
  """One parameter, from one array in memory at a time; names of bad ones go to `damaged`."""

  def read(name: str) -> np.ndarray:
    array = stored[name].read()
    with np.errstate(over="ignore"):
      array = array.astype(np.float32) if array.dtype == np.float64 else array
    if not np.isfinite(array).all():
      damaged.append(name)
    return array

  types = [stored[name].dtype.replace("float64", "float32") for name in source.names]
  result = np.empty(source.shape, np.dtype(dtype) if dtype else np.result_type(*types))
  if source.scanned:
    result[...] = np.moveaxis(read(source.names[0]), 1, 0).reshape(source.shape)
    return result
  stacked = len(source.accepted[0]) < len(source.shape)
  for slot, name in zip(result if stacked else result[None], source.names, strict=True):
    slot[...] = read(name).reshape(slot.shape)
  return result
