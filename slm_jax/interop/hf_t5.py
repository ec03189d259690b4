"""T5-family language models to and from Hugging Face folders."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from slm_jax.errors import UserError
from slm_jax.interop import safetensors_folder as folders
from slm_jax.interop.safetensors_writer import write_tensors
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.t5_config import T5Config

_ARCHITECTURES = {
  "t5": "T5ForConditionalGeneration",
  "mt5": "MT5ForConditionalGeneration",
  "umt5": "UMT5ForConditionalGeneration",
}
# `feed_forward_proj` -> activations. Plain "gelu" is the erf form there, which no released T5 uses.
_ACTIVATIONS = {
  "gated-gelu": ("gelu", "linear"),
  "gated-relu": ("relu", "linear"),
  "gated-silu": ("silu", "linear"),
  "relu": ("relu",),
  "silu": ("silu",),
}
_REQUIRED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
# Fields that may be left out, and what they are where they are not.
_OPTIONAL = {
  "num_decoder_layers": (int, "a whole number"),
  "relative_attention_num_buckets": (int, "a whole number"),
  "relative_attention_max_distance": (int, "a whole number"),
  "eos_token_id": (int, "a whole number"),
  "layer_norm_epsilon": (int | float, "a number"),
  "dropout_rate": (int | float, "a number"),
  "feed_forward_proj": (str, "text"),
}
_HEAD = "lm_head.weight"
_COMPARED_ROWS = 4096
# Files written by PyTorch repeat shared tensors under these names.
_DUPLICATES = (
  "encoder.embed_tokens.weight",
  "decoder.embed_tokens.weight",
  # Older mT5 and T5 files carry one bias that their own model never used.
  "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


def open_hf_language_model(
  path: Path | str, *, dtype: str | None = None
) -> tuple[T5Config, dict[str, StoredParameter]]:
  """Config and parameters, by path, of a T5, T5 1.1, mT5 or umT5 folder; no weights are read yet.

  Args:
    path: folder with config.json and model.safetensors or pytorch_model.bin (one file, or shards
      with an index; safetensors first). Of a .bin only tensors are read: nothing in it can run.
    dtype: "float32", "bfloat16" or "float16" casts the weights; None keeps the file's types.

  Raises:
    UserError: a file is missing or damaged, or a tensor is missing, surplus or mis-shaped.
  """
  folders.check_dtype(dtype)
  folder = Path(path)
  raw = folders.read_config(folder)
  config, scaled = _to_config(raw, folder)
  tensors = folders.TensorFolder(folder)
  # A head of its own may stand beside the request to scale: the scale then moves into the head.
  tied = scaled and not _has_own_head(tensors)
  config = dataclasses.replace(config, logits_via_embedding=tied)
  parameters = _stored_parameters(tensors, config, dtype)
  if scaled and not tied:
    head = parameters["decoder/logits_dense/kernel"]
    head = dataclasses.replace(head, scale=config.emb_dim**-0.5)
    parameters["decoder/logits_dense/kernel"] = head
  return config, parameters


def save_language_model(
  path: Path | str,
  config: T5Config,
  params: Mapping,
  tokenizer_model_path: Path | str | None = None,
  *,
  max_shard_bytes: int | None = None,
  report: Callable[[int], None] | None = None,
) -> None:
  """Writes a folder that `load_language_model` and Hugging Face Transformers read.

  Args:
    path: folder, created if missing; files of an earlier save are replaced, the weights last.
    config: the model's shape.
    params: nested dict, of T5's names and shapes (unboxed), of arrays or `StoredParameter`s; of
      these one layer is in memory at a time, or one stack where its file has layers together.
    tokenizer_model_path: what becomes spiece.model: a copy of it, or a unigram tokenizer.json.
    max_shard_bytes, report: as of `write_tensors`.

  Raises:
    ValueError: parameters do not fit the config.
    DamagedWeights: stored ones hold NaN or infinite values.
  """
  folder = Path(path)
  arrays: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  expected = {name: shape for name, shape, _ in _parameters(config)}
  if (actual := {name: tuple(array.shape) for name, array in arrays.items()}) != expected:
    different = sorted(set(actual.items()) ^ set(expected.items()))
    raise ValueError(f"parameters do not fit the config: {different[:4]}")
  tensors: dict[str, _Tensor] = {}
  stacks = _LastStack()
  for name, _, source in _parameters(config):
    for layer, tensor_name in enumerate(source.names):
      number = layer if source.stacked else None
      tensors[tensor_name] = _Tensor(arrays[name], number, source.transposed, stacks)
  if not any(_is_together(array) for array in arrays.values()):
    # As the library of the format has them; else by parameter, so that a stack is read once.
    tensors = dict(sorted(tensors.items()))
  dtype = np.dtype(arrays["token_embedder/embedding"].dtype).name
  folders.write_config(folder, _from_config(config, dtype))
  if tokenizer_model_path is not None:
    content = folders.tokenizer_model(tokenizer_model_path)
    folders.write_bytes(folder / folders.TOKENIZER_NAME, content)
  write_tensors(folder, tensors, max_shard_bytes=max_shard_bytes, report=report)


def _is_together(parameter: Any) -> bool:
  return isinstance(parameter, StoredParameter) and parameter.layers == "axis1"


class _LastStack:
  """Keeps the last stack whose layers cannot be read one at a time."""

  def __init__(self):
    self._parameter, self._array = None, np.empty(0)

  def array(self, parameter: StoredParameter) -> np.ndarray:
    if parameter is not self._parameter:
      self._parameter, self._array = None, np.empty(0)
      self._parameter, self._array = parameter, parameter.read()
    return self._array


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor to be written: a parameter, or one layer of it, maybe as [out, in]."""

  parameter: Any
  layer: int | None
  transposed: bool
  stacks: _LastStack

  @property
  def shape(self) -> tuple[int, ...]:
    shape = tuple(self.parameter.shape[0 if self.layer is None else 1 :])
    return shape[::-1] if self.transposed else shape

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(self.parameter.dtype)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    parameter, layer = self.parameter, self.layer
    if layer is None:
      array = np.asarray(parameter)
    elif _is_together(parameter):
      array = self.stacks.array(parameter)[layer]
    elif isinstance(parameter, StoredParameter):
      others = (slice(None) for _ in parameter.shape[1:])
      array = parameter.read((slice(layer, layer + 1), *others))[0]
    else:
      array = np.asarray(parameter[layer])
    return array.T if self.transposed else array


@dataclasses.dataclass(frozen=True)
class _Source:
  """Where a parameter lies in the file: one tensor, or one for each layer."""

  names: tuple[str, ...]
  stacked: bool
  transposed: bool


def _parameters(cfg: T5Config) -> Iterator[tuple[str, tuple[int, ...], _Source]]:
  """Every parameter's path, shape and source."""
  embedding = (cfg.vocab_size, cfg.emb_dim)
  yield "token_embedder/embedding", embedding, _Source(("shared.weight",), False, False)
  if not cfg.logits_via_embedding:
    source = _Source((_HEAD,), False, True)
    yield "decoder/logits_dense/kernel", embedding[::-1], source
  for side, length in (("encoder", cfg.num_encoder_layers), ("decoder", cfg.num_decoder_layers)):
    final = _Source((f"{side}.final_layer_norm.weight",), False, False)
    yield f"{side}/{side}_norm/scale", (cfg.emb_dim,), final
    bias_shape = (cfg.num_heads, cfg.relpos_num_buckets)
    bias_name = "layer.0.SelfAttention.relative_attention_bias.weight"
    if not cfg.per_layer_relpos:
      source = _Source((f"{side}.block.0.{bias_name}",), False, True)
      yield f"{side}/relpos_bias/rel_embedding", bias_shape, source
    else:
      source = _layer_source(side, length, bias_name, transposed=True)
      yield f"{side}/layers/relpos_bias/rel_embedding", (length, *bias_shape), source
    for path, shape, tensor in _layer_parameters(cfg, side):
      source = _layer_source(side, length, tensor, transposed=len(shape) == 2)
      yield f"{side}/layers/{path}", (length, *shape), source


def _layer_source(side: str, length: int, tensor: str, *, transposed: bool) -> _Source:
  return _Source(tuple(f"{side}.block.{i}.{tensor}" for i in range(length)), True, transposed)


def _layer_parameters(cfg: T5Config, side: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
  """Path, shape and tensor name within one layer; kernels are [in, out], in the file [out, in]."""
  joined = cfg.num_heads * cfg.head_dim
  attentions = [("attention", "pre_attention_layer_norm", "SelfAttention")]
  if side == "decoder":
    attentions = [
      ("self_attention", "pre_self_attention_layer_norm", "SelfAttention"),
      ("encoder_decoder_attention", "pre_cross_attention_layer_norm", "EncDecAttention"),
    ]
  for index, (name, norm, tensor) in enumerate(attentions):
    yield f"{norm}/scale", (cfg.emb_dim,), f"layer.{index}.layer_norm.weight"
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
      shape = (cfg.emb_dim, joined)
      yield f"{name}/{ours}/kernel", shape, f"layer.{index}.{tensor}.{theirs}.weight"
    yield f"{name}/out/kernel", (joined, cfg.emb_dim), f"layer.{index}.{tensor}.o.weight"
  index = len(attentions)
  yield "pre_mlp_layer_norm/scale", (cfg.emb_dim,), f"layer.{index}.layer_norm.weight"
  inputs = ("wi",) if len(cfg.mlp_activations) == 1 else ("wi_0", "wi_1")
  for name in inputs:
    shape = (cfg.emb_dim, cfg.mlp_dim)
    yield f"mlp/{name}/kernel", shape, f"layer.{index}.DenseReluDense.{name}.weight"
  shape = (cfg.mlp_dim, cfg.emb_dim)
  yield "mlp/wo/kernel", shape, f"layer.{index}.DenseReluDense.wo.weight"


def _stored_parameters(
  tensors: folders.TensorFolder, cfg: T5Config, dtype: str | None
) -> dict[str, StoredParameter]:
  if (layers := cfg.num_encoder_layers + cfg.num_decoder_layers) > len(tensors.tensors):
    # Names of a billion layers would fill the memory before any is missed.
    raise UserError(
      f"{tensors.folder} holds {len(tensors.tensors)} tensors, config.json calls for {layers} layers"
    )
  sources = {name: source for name, _, source in _parameters(cfg)}
  head_is_shared = not cfg.logits_via_embedding and _HEAD not in tensors.tensors
  if head_is_shared:
    # Tied mT5 does not scale its output, unlike T5 1.0: an untied head with the same numbers.
    head = sources["decoder/logits_dense/kernel"]
    sources["decoder/logits_dense/kernel"] = dataclasses.replace(head, names=("shared.weight",))
  expected: dict[str, tuple[int, ...]] = {}
  for name, shape, _ in _parameters(cfg):
    source = sources[name]
    one = shape[1:] if source.stacked else shape
    expected |= dict.fromkeys(source.names, one[::-1] if source.transposed else one)
  tensors.check(expected, ignored=(*_DUPLICATES, *((_HEAD,) if cfg.logits_via_embedding else ())))
  parameters = {}
  for name, shape, _ in _parameters(cfg):
    source = sources[name]
    found = tuple(tensors.tensors[tensor] for tensor in source.names)
    parameters[name] = StoredParameter(
      shape=shape,
      dtype=folders.result_dtype(found, dtype),
      tensors=found,
      layers="apart" if source.stacked else "none",
      transposed=source.transposed,
    )
  return parameters


def _has_own_head(tensors: folders.TensorFolder) -> bool:
  """Whether there is an output layer with other numbers than the embedding."""
  if _HEAD not in tensors.tensors or "shared.weight" not in tensors.tensors:
    return False
  head, shared = (tensors.parameter(name) for name in (_HEAD, "shared.weight"))
  if head.shape != shared.shape:
    return True
  for start in range(0, head.shape[0], _COMPARED_ROWS):
    rows = (slice(start, start + _COMPARED_ROWS), *(slice(None) for _ in head.shape[1:]))
    if not np.array_equal(head.read(rows), shared.read(rows)):
      return True
  return False


def _to_config(raw: Mapping, folder: Path) -> tuple[T5Config, bool]:
  """config.json -> (config, whether the output is scaled as T5 1.0 does with a tied embedding)."""
  file = folder / folders.CONFIG_NAME
  raw = {name: value for name, value in raw.items() if value is not None}
  model_type = _model_type(raw, file)
  kinds = {**dict.fromkeys(_REQUIRED, (int, "a whole number")), **_OPTIONAL}
  for name, (kind, expected) in kinds.items():
    value = raw.get(name)
    absent = value is None and name in _OPTIONAL
    if not absent and (isinstance(value, bool) or not isinstance(value, kind)):
      raise UserError(f"{file}: {name} is {value!r:.100}, expected {expected}")
  projection = raw.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
  if projection not in _ACTIVATIONS:
    raise UserError(
      f"{file}: feed_forward_proj is {projection!r}, expected one of {sorted(_ACTIVATIONS)}"
    )
  for name in ("decoder_start_token_id", "pad_token_id"):
    if raw.get(name, 0) != 0:
      raise UserError(
        f"{file}: {name} is {raw[name]!r}; the T5 family starts decoding from pad, id 0"
      )
  tied = raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings") is not False)
  try:
    config = T5Config(
      vocab_size=raw["vocab_size"],
      emb_dim=raw["d_model"],
      num_heads=raw["num_heads"],
      head_dim=raw["d_kv"],
      mlp_dim=raw["d_ff"],
      num_encoder_layers=raw["num_layers"],
      num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
      mlp_activations=_ACTIVATIONS[projection],
      relpos_num_buckets=raw.get("relative_attention_num_buckets", 32),
      relpos_max_distance=raw.get("relative_attention_max_distance", 128),
      per_layer_relpos=model_type == "umt5",
      layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-6),
      dropout_rate=raw.get("dropout_rate", 0.1),
      eos_id=raw.get("eos_token_id", 1),
    )
  except (ValueError, TypeError) as error:
    raise UserError(f"{file}: {error}") from error
  return config, bool(tied) and model_type != "mt5"


def _model_type(raw: Mapping, file: Path) -> str:
  """`model_type`, or where config.json has none, as umT5's, that of its `architectures`."""
  model_type, architectures = raw.get("model_type"), raw.get("architectures")
  if model_type is None:
    for name, architecture in _ARCHITECTURES.items():
      if architectures == [architecture]:
        return name
  if model_type not in _ARCHITECTURES:
    raise UserError(
      f"{file}: model_type is {model_type!r}, expected one of {sorted(_ARCHITECTURES)}; "
      f"architectures is {architectures!r}"
    )
  return model_type


def _from_config(cfg: T5Config, dtype: str) -> dict:
  """The inverse of `_to_config`."""
  if cfg.per_layer_relpos:
    model_type = "umt5"
  else:
    model_type = "t5" if cfg.logits_via_embedding else "mt5"
  projections = {activations: name for name, activations in _ACTIVATIONS.items()}
  if cfg.mlp_activations not in projections:
    raise ValueError(
      f"mlp_activations={cfg.mlp_activations} has no name in this format; "
      f"it knows {list(projections)}"
    )
  return {
    "architectures": [_ARCHITECTURES[model_type]],
    "d_ff": cfg.mlp_dim,
    "d_kv": cfg.head_dim,
    "d_model": cfg.emb_dim,
    "decoder_start_token_id": cfg.pad_id,
    "dropout_rate": cfg.dropout_rate,
    "dtype": dtype,
    "eos_token_id": cfg.eos_id,
    "feed_forward_proj": projections[cfg.mlp_activations],
    "is_encoder_decoder": True,
    "layer_norm_epsilon": cfg.layer_norm_epsilon,
    "model_type": model_type,
    "num_decoder_layers": cfg.num_decoder_layers,
    "num_heads": cfg.num_heads,
    "num_layers": cfg.num_encoder_layers,
    "pad_token_id": cfg.pad_id,
    "relative_attention_max_distance": cfg.relpos_max_distance,
    "relative_attention_num_buckets": cfg.relpos_num_buckets,
    "tie_word_embeddings": cfg.logits_via_embedding,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": cfg.vocab_size,
  }
