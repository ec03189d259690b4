"""A speech encoder in a folder: config.json, model.safetensors, the tokenizer of its CTC head.

Tensors are named by their path in the parameter tree, joined with dots; a layer stack is one tensor
with a leading layer axis.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from slm_jax.errors import UserError
from slm_jax.interop import safetensors_folder
from slm_jax.interop.config_record import config_from_record
from slm_jax.interop.quantized_parameter import quantized
from slm_jax.interop.safetensors_writer import write_tensors
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoders.families import FAMILIES, family_of, make_speech_encoder

# model_type of a saved folder is this and the name of the family.
MODEL_TYPE_PREFIX = "slm_jax_"


def save_speech_encoder(
  path: str | Path,
  config: SpeechEncoderConfig,
  params: Mapping[str, Any],
  tokenizer_model_path: str | Path | None = None,
  *,
  report: Callable[[int], None] | None = None,
) -> None:
  """Writes the folder.

  Args:
    path: folder, made if missing.
    config: the encoder's shape.
    params: nested dict of arrays or `StoredParameter`s, unboxed, in the types to be stored.
    tokenizer_model_path: SentencePiece model of the CTC head's pieces, copied in; None for an
      encoder without one, or with a tokenizer of another kind, whose files the caller copies.
    report: as of `write_tensors`.
  """
  path = Path(path)
  flat: dict[tuple[str, ...], Any] = flatten_dict(dict(params))
  tensors = {".".join(key): value for key, value in flat.items()}
  write_tensors(path, dict(sorted(tensors.items())), report=report)
  if tokenizer_model_path is not None:
    content = Path(tokenizer_model_path).read_bytes()
    safetensors_folder.write_bytes(path / safetensors_folder.TOKENIZER_NAME, content)
  record = {"model_type": MODEL_TYPE_PREFIX + family_of(config), **dataclasses.asdict(config)}
  safetensors_folder.write_config(path, record)


def is_own_folder(record: Mapping[str, Any]) -> bool:
  """Whether a config.json is of a folder that `save_speech_encoder` wrote."""
  kind = record.get("model_type")
  return isinstance(kind, str) and kind.startswith(MODEL_TYPE_PREFIX)


def read_encoder_config(path: str | Path) -> SpeechEncoderConfig:
  """The config of a folder; raises UserError if it is missing or not of this kind."""
  record = safetensors_folder.read_config(path)
  file = Path(path) / safetensors_folder.CONFIG_NAME
  kind = str(record.pop("model_type", None))
  family = FAMILIES.get(kind.removeprefix(MODEL_TYPE_PREFIX))
  if family is None or not kind.startswith(MODEL_TYPE_PREFIX):
    known = [f"{MODEL_TYPE_PREFIX}{name}" for name in FAMILIES]
    raise UserError(f"{file}: model_type is {kind!r}, expected one of {known}")
  try:
    return config_from_record(family.config, record)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{file} does not describe a speech encoder: {error}") from error


def abstract_params(config: SpeechEncoderConfig) -> dict:
  """The parameter tree of an encoder, unboxed, as shapes only."""
  audio, lengths = jnp.zeros((1, 1280), jnp.int16), jnp.full((1,), 1280, jnp.int32)
  variables = jax.eval_shape(make_speech_encoder(config).init, jax.random.key(0), audio, lengths)
  return nn.unbox(variables["params"])


def open_own_folder(
  path: str | Path, *, dtype: str | None = None
) -> tuple[SpeechEncoderConfig, dict[str, StoredParameter]]:
  """Config and parameters, by path, of a folder written by `save_speech_encoder`, unread.

  Raises:
    UserError: a file is missing or damaged, or the weights are not those of the config.
  """
  config = read_encoder_config(path)
  folder = safetensors_folder.TensorFolder(path)
  leaves: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  names = {key: key.replace("/", ".") for key in leaves}
  folder.check({names[key]: leaf.shape for key, leaf in leaves.items()})
  return config, {key: folder.parameter(name, dtype) for key, name in names.items()}


def quantize_encoder(
  config: SpeechEncoderConfig, parameters: Mapping[str, StoredParameter]
) -> tuple[SpeechEncoderConfig, dict[str, Any]]:
  """The same encoder with int8 weights, made of the floats as they are read.

  Raises:
    UserError: the family has float weights only.
  """
  if not isinstance(config, ConformerConfig):
    raise UserError(
      f"int8 weights are for encoders of the family conformer_ctc, this one is {family_of(config)}; "
      'set AdapterRecipe.frozen_speech_encoder_dtype = "bfloat16"'
    )
  config = dataclasses.replace(config, weights="int8")
  return config, quantized(parameters, flatten_dict(abstract_params(config), sep="/"))
