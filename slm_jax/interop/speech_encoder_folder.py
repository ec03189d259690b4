"""A speech encoder in a folder: config.json, model.safetensors, and spiece.model of its CTC head's pieces.

Tensors are named by their path in the parameter tree, joined with dots; a layer stack is one tensor with a leading
layer axis.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from slm_jax.audio.log_mel import LogMelConfig
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.errors import UserError
from slm_jax.models.speech_encoder import ConformerConfig, SpeechEncoder, SpeechEncoderOutput

MODEL_TYPE = "slm_jax_conformer_ctc"
CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME = "config.json", "model.safetensors", "spiece.model"


class SpeechEncoderModel:
  """A loaded speech encoder; calls are jitted, one compilation per shape.

  Attributes:
    config: its ConformerConfig.
    params: nested dict of arrays.
    tokenizer: SentencePieceProcessor of the CTC head's pieces, or None.
  """

  def __init__(
    self,
    config: ConformerConfig,
    params: dict,
    tokenizer: sentencepiece.SentencePieceProcessor | None = None,
  ):
    self.config, self.params, self.tokenizer = config, params, tokenizer
    module = SpeechEncoder(config)
    self._features = jax.jit(
      lambda audio, lengths: module.apply({}, audio, lengths, method="features")
    )
    self._encode = jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))

  def features(self, audio, lengths) -> tuple[jax.Array, jax.Array]:
    """Audio int16 or float [B, S], lengths [B] in samples -> (log-mel fp32 [B, T', F], mask bool [B, T'])."""
    return self._features(audio, jnp.asarray(lengths, jnp.int32))

  def __call__(self, audio, lengths) -> SpeechEncoderOutput:
    """Audio int16 or float in [-1, 1], [B, S] at 16 kHz, lengths [B] in samples -> frames, mask, CTC logits."""
    return self._encode(self.params, audio, jnp.asarray(lengths, jnp.int32))


def save_speech_encoder(
  path: str | Path,
  config: ConformerConfig,
  params: Mapping[str, Any],
  tokenizer_model_path: str | Path | None = None,
) -> None:
  """Writes the folder.

  Args:
    path: folder, made if missing.
    config: the encoder's shape.
    params: nested dict of arrays, unboxed, in the types to be stored.
    tokenizer_model_path: SentencePiece model of the CTC head's pieces, copied in; None for an encoder without one.
  """
  path = Path(path)
  path.mkdir(parents=True, exist_ok=True)
  tensors = {
    ".".join(key): np.ascontiguousarray(value) for key, value in flatten_dict(dict(params)).items()
  }
  save_file(tensors, path / WEIGHTS_NAME)
  record = {"model_type": MODEL_TYPE, **dataclasses.asdict(config)}
  (path / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n")
  if tokenizer_model_path is not None:
    shutil.copyfile(tokenizer_model_path, path / TOKENIZER_NAME)


def read_config(path: str | Path) -> ConformerConfig:
  """Reads the folder's config.json; raises UserError if it is missing or is not of this kind."""
  file = Path(path) / CONFIG_NAME
  try:
    record = json.loads(file.read_text())
  except FileNotFoundError:
    raise UserError(f"{file} does not exist: expected a speech encoder's folder") from None
  except json.JSONDecodeError as error:
    raise UserError(f"{file} is not JSON: {error}") from None
  if record.pop("model_type", None) != MODEL_TYPE:
    raise UserError(f"{file}: expected model_type {MODEL_TYPE!r}; choose a folder of that kind")
  try:
    record["log_mel"] = LogMelConfig(**record["log_mel"])
    if record["spec_augment"] is not None:
      record["spec_augment"] = SpecAugmentConfig(**record["spec_augment"])
    record["subsampling_channels"] = tuple(record["subsampling_channels"])
    return ConformerConfig(**record)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{file}: {error}; write the folder again with this version") from None


def abstract_params(config: ConformerConfig) -> dict:
  """The parameter tree of an encoder, as shapes only."""
  audio, lengths = jnp.zeros((1, 1280), jnp.int16), jnp.full((1,), 1280, jnp.int32)
  variables = jax.eval_shape(SpeechEncoder(config).init, jax.random.key(0), audio, lengths)
  return nn.unbox(variables["params"])


def load_speech_encoder(path: str | Path, *, dtype: str | None = None) -> SpeechEncoderModel:
  """Loads a folder written by `save_speech_encoder`.

  Args:
    path: the folder.
    dtype: type the parameters are cast to ("float32", "bfloat16"); None keeps the stored one. The compute type is
      the config's.

  Raises:
    UserError: a file is missing, or the weights are not those of the config.
  """
  path = Path(path)
  config = read_config(path)
  weights = path / WEIGHTS_NAME
  if not weights.exists():
    raise UserError(f"{weights} does not exist: expected the weights beside {CONFIG_NAME}")
  stored = load_file(weights)
  expected = {".".join(k): v.shape for k, v in flatten_dict(abstract_params(config)).items()}
  found = {key: value.shape for key, value in stored.items()}
  if found != expected:
    wrong = sorted(set(found.items()) ^ set(expected.items()))
    raise UserError(
      f"{weights} does not fit {CONFIG_NAME}: {len(wrong)} tensors differ in name or shape, the first {wrong[0]}"
    )
  params = {
    tuple(key.split(".")): jnp.asarray(value, dtype or value.dtype) for key, value in stored.items()
  }
  tokenizer = None
  if (path / TOKENIZER_NAME).exists():
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path / TOKENIZER_NAME))
  return SpeechEncoderModel(config, unflatten_dict(params), tokenizer)
