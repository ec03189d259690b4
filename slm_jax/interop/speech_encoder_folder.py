"""A speech encoder in a folder: config.json, model.safetensors, spiece.model of its CTC head.

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
from flax.traverse_util import flatten_dict, unflatten_dict

from slm_jax.audio.log_mel import LogMelConfig
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.errors import UserError
from slm_jax.interop import safetensors_folder
from slm_jax.interop.placement import place_all
from slm_jax.interop.safetensors_writer import write_tensors
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoder import ConformerConfig, SpeechEncoder, SpeechEncoderOutput

MODEL_TYPE = "slm_jax_conformer_ctc"


class SpeechEncoderModel:
  """A loaded speech encoder; calls are jitted, one compilation per shape.

  Attributes:
    config: its ConformerConfig.
    params: nested dict of arrays.
    tokenizer: SentencePieceProcessor of the CTC head's pieces, or None.
  """

  def __init__(self, config: ConformerConfig, params: dict, tokenizer=None):
    self.config, self.params, self.tokenizer = config, params, tokenizer
    module = SpeechEncoder(config)
    self._features = jax.jit(
      lambda audio, lengths: module.apply({}, audio, lengths, method="features")
    )
    self._encode = jax.jit(
      lambda params, audio, lengths: module.apply({"params": params}, audio, lengths)
    )

  def features(self, audio, lengths) -> tuple[jax.Array, jax.Array]:
    """Log-mel features.

    Args:
      audio: int16, or float in [-1, 1], [B, S] at 16 kHz.
      lengths: [B], in samples.

    Returns:
      (fp32 [B, T', F], 0 at padding; mask bool [B, T'], True = real), 100 frames/s.
    """
    return self._features(audio, jnp.asarray(lengths, jnp.int32))

  def __call__(self, audio, lengths) -> SpeechEncoderOutput:
    """Encodes; arguments as of `features`, result as of `SpeechEncoder`, 25 frames/s."""
    return self._encode(self.params, audio, jnp.asarray(lengths, jnp.int32))


def save_speech_encoder(
  path: str | Path,
  config: ConformerConfig,
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
      encoder without one.
    report: as of `write_tensors`.
  """
  path = Path(path)
  flat: dict[tuple[str, ...], Any] = flatten_dict(dict(params))
  tensors = {".".join(key): value for key, value in flat.items()}
  write_tensors(path, dict(sorted(tensors.items())), report=report)
  if tokenizer_model_path is not None:
    content = Path(tokenizer_model_path).read_bytes()
    safetensors_folder.write_bytes(path / safetensors_folder.TOKENIZER_NAME, content)
  record = {"model_type": MODEL_TYPE, **dataclasses.asdict(config)}
  safetensors_folder.write_config(path, record)


def read_encoder_config(path: str | Path) -> ConformerConfig:
  """The config of a folder; raises UserError if it is missing or not of this kind."""
  record = safetensors_folder.read_config(path)
  file = Path(path) / safetensors_folder.CONFIG_NAME
  kind = record.pop("model_type", None)
  if kind != MODEL_TYPE:
    raise UserError(f"{file}: model_type is {kind!r}, expected {MODEL_TYPE!r}")
  try:
    record["log_mel"] = LogMelConfig(**record["log_mel"])
    if record["spec_augment"] is not None:
      record["spec_augment"] = SpecAugmentConfig(**record["spec_augment"])
    record["subsampling_channels"] = tuple(record["subsampling_channels"])
    return ConformerConfig(**record)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{file} does not describe a speech encoder: {error}") from error


def abstract_params(config: ConformerConfig) -> dict:
  """The parameter tree of an encoder, unboxed, as shapes only."""
  audio, lengths = jnp.zeros((1, 1280), jnp.int16), jnp.full((1,), 1280, jnp.int32)
  variables = jax.eval_shape(SpeechEncoder(config).init, jax.random.key(0), audio, lengths)
  return nn.unbox(variables["params"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSpeechEncoder:
  """An encoder whose weights still lie in its files.

  Attributes:
    config: shape of the model.
    parameters: by path, joined with "/".
    tokenizer_path: SentencePiece model of the CTC head's pieces, None if there is none.
  """

  config: ConformerConfig
  parameters: dict[str, StoredParameter]
  tokenizer_path: Path | None

  @property
  def params(self) -> dict:
    """The parameters as a nested dict."""
    return unflatten_dict(self.parameters, sep="/")

  @property
  def tokenizer(self) -> Any:
    """A new SentencePiece processor, or None."""
    if self.tokenizer_path is None:
      return None
    return safetensors_folder.open_tokenizer(self.tokenizer_path)


def open_speech_encoder(path: str | Path, *, dtype: str | None = None) -> StoredSpeechEncoder:
  """Opens a folder written by `save_speech_encoder` without reading its weights.

  Args:
    path: the folder.
    dtype: type the parameters are cast to, "float32" or "bfloat16"; None keeps the stored one. The
      compute type is the config's.

  Raises:
    UserError: a file is missing or damaged, or the weights are not those of the config.
  """
  safetensors_folder.check_dtype(dtype)
  config = read_encoder_config(path)
  folder = safetensors_folder.TensorFolder(path)
  leaves: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  names = {key: key.replace("/", ".") for key in leaves}
  folder.check({names[key]: leaf.shape for key, leaf in leaves.items()})
  tokenizer = Path(path) / safetensors_folder.TOKENIZER_NAME
  return StoredSpeechEncoder(
    config=config,
    parameters={key: folder.parameter(name, dtype) for key, name in names.items()},
    tokenizer_path=tokenizer if tokenizer.is_file() else None,
  )


def load_speech_encoder(path: str | Path, *, dtype: str | None = None) -> SpeechEncoderModel:
  """Loads a folder onto the default device; arguments and errors as of `open_speech_encoder`.

  Raises:
    UserError: besides, tensors hold NaN or infinite values.
  """
  source = open_speech_encoder(path, dtype=dtype)
  tokenizer = source.tokenizer
  placed = place_all(source.parameters, None)
  return SpeechEncoderModel(source.config, unflatten_dict(placed, sep="/"), tokenizer)
