"""Speech encoders from any source: a folder of ours, or a Hugging Face folder of a known family."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict

from slm_jax.errors import UserError
from slm_jax.interop import safetensors_folder, speech_encoder_folder
from slm_jax.interop.ctc_tokenizer import CtcTokenizer, open_ctc_tokenizer, tokenizer_files
from slm_jax.interop.placement import place_all
from slm_jax.interop.speech_encoders.gemma_audio import open_gemma3n_audio, open_gemma4_audio
from slm_jax.interop.speech_encoders.granite_speech import open_granite_speech
from slm_jax.interop.speech_encoders.lasr import open_lasr
from slm_jax.interop.speech_encoders.parakeet import open_parakeet
from slm_jax.interop.speech_encoders.w2v_bert import open_w2v_bert
from slm_jax.interop.speech_encoders.whisper import open_whisper
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoder_model import SpeechEncoderModel

# Reads (folder, its config.json, dtype) as (config, parameters by path joined with "/").
Opener = Callable[
  [Path, Mapping[str, Any], str | None], tuple[SpeechEncoderConfig, dict[str, StoredParameter]]
]
# `model_type` of a Hugging Face config.json -> how to open such a folder.
OPENERS: dict[str, Opener] = {
  "gemma3n": open_gemma3n_audio,
  "gemma3n_audio": open_gemma3n_audio,
  "gemma4": open_gemma4_audio,
  "gemma4_audio": open_gemma4_audio,
  "granite_speech": open_granite_speech,
  "granite_speech_encoder": open_granite_speech,
  "lasr_ctc": open_lasr,
  "lasr_encoder": open_lasr,
  "parakeet_ctc": open_parakeet,
  "parakeet_encoder": open_parakeet,
  "parakeet_rnnt": open_parakeet,
  "parakeet_tdt": open_parakeet,
  "wav2vec2-bert": open_w2v_bert,
  "whisper": open_whisper,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSpeechEncoder:
  """An encoder whose weights still lie in its files.

  Attributes:
    config: shape of the model.
    parameters: by path, joined with "/".
    tokenizer_files: what turns the CTC head's classes into text; none without a head.
  """

  config: SpeechEncoderConfig
  parameters: dict[str, StoredParameter]
  tokenizer_files: tuple[Path, ...] = ()

  @property
  def params(self) -> dict:
    """The parameters as a nested dict."""
    return unflatten_dict(self.parameters, sep="/")

  @property
  def tokenizer(self) -> CtcTokenizer | None:
    """A new tokenizer, or None; raises UserError if its files are damaged or of another kind."""
    if not self.tokenizer_files:
      return None
    return open_ctc_tokenizer(self.tokenizer_files[0].parent)


def is_speech_encoder(record: Mapping[str, Any]) -> bool:
  """Whether a config.json is of a speech encoder that `open_speech_encoder` opens."""
  return speech_encoder_folder.is_own_folder(record) or record.get("model_type") in OPENERS


def open_speech_encoder(path: str | Path, *, dtype: str | None = None) -> StoredSpeechEncoder:
  """Opens a folder without reading its weights.

  Args:
    path: a folder of `save_speech_encoder`, or a Hugging Face folder of a family in `OPENERS`.
    dtype: type the parameters are cast to, "float32", "bfloat16" or "float16"; "int8" quantises
      the large ones as they are read; None keeps the stored one. The compute type is the config's.

  Raises:
    UserError: a file is missing or damaged, the family or one of its options is not supported, or
      the weights are not those of the config.
  """
  int8 = dtype == "int8"
  dtype = None if int8 else dtype
  safetensors_folder.check_dtype(dtype)
  folder = Path(path)
  record = safetensors_folder.read_config(folder)
  if speech_encoder_folder.is_own_folder(record):
    config, parameters = speech_encoder_folder.open_own_folder(folder, dtype=dtype)
  elif (kind := record.get("model_type")) in OPENERS:
    config, parameters = OPENERS[kind](folder, record, dtype)
  else:
    raise UserError(
      f"{folder / safetensors_folder.CONFIG_NAME}: model_type is {kind!r}, expected a speech encoder: "
      f"one that this program saved, or one of {sorted(OPENERS)}"
    )
  if int8:
    config, parameters = speech_encoder_folder.quantize_encoder(config, parameters)
  return StoredSpeechEncoder(
    config=config,
    parameters=parameters,
    tokenizer_files=tokenizer_files(folder) if config.vocab_size else (),
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
