"""Whisper's encoder out of a Hugging Face folder of the whole model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from slm_jax.audio.whisper_log_mel import WhisperLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import CONFIG_NAME, TensorFolder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.interop.speech_encoders.extractor_settings import check_fixed, read_extractor_settings
from slm_jax.interop.speech_encoders.torch_layout import Form, Source, stored_parameters
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoders.whisper import WhisperConfig

_SAMPLE_RATE = 16_000
# The frontend: what all published ones have, and what there is no choice of.
_PUBLISHED = {"chunk_length": 30, "n_fft": 400, "hop_length": 160}
_FIXED = {
  "sampling_rate": _SAMPLE_RATE,
  "padding_value": 0,
  "padding_side": "right",
  "dither": 0,
}
_LAYER: dict[str, tuple[str, Form]] = {
  "attention/query/kernel": ("self_attn.q_proj.weight", "linear"),
  "attention/query/bias": ("self_attn.q_proj.bias", "same"),
  "attention/key/kernel": ("self_attn.k_proj.weight", "linear"),
  "attention/value/kernel": ("self_attn.v_proj.weight", "linear"),
  "attention/value/bias": ("self_attn.v_proj.bias", "same"),
  "attention/out/kernel": ("self_attn.out_proj.weight", "linear"),
  "attention/out/bias": ("self_attn.out_proj.bias", "same"),
  "attention_norm/scale": ("self_attn_layer_norm.weight", "same"),
  "attention_norm/bias": ("self_attn_layer_norm.bias", "same"),
  "ffn_norm/scale": ("final_layer_norm.weight", "same"),
  "ffn_norm/bias": ("final_layer_norm.bias", "same"),
  "wi/kernel": ("fc1.weight", "linear"),
  "wi/bias": ("fc1.bias", "same"),
  "wo/kernel": ("fc2.weight", "linear"),
  "wo/bias": ("fc2.bias", "same"),
}
_ENCODER: dict[str, tuple[str, Form]] = {
  "conv_0/kernel": ("conv1.weight", "conv1d"),
  "conv_0/bias": ("conv1.bias", "same"),
  "conv_1/kernel": ("conv2.weight", "conv1d"),
  "conv_1/bias": ("conv2.bias", "same"),
  "positions": ("embed_positions.weight", "same"),
  "norm/scale": ("layer_norm.weight", "same"),
  "norm/bias": ("layer_norm.bias", "same"),
}


def open_whisper(
  folder: Path, record: Mapping[str, Any], dtype: str | None
) -> tuple[WhisperConfig, dict[str, StoredParameter]]:
  """Config and parameters, unread, of a folder that transformers' `WhisperModel` or a model around it
  saved, such as `WhisperForConditionalGeneration`; all but the encoder stays unread.

  The frontend's settings, where the folder has none, are those of every published Whisper.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  config = _config(folder, record)
  tensors = TensorFolder(folder)
  # WhisperModel's own tensors carry no prefix, those of most models around it do.
  prefix = "model.encoder." if "model.encoder.conv1.weight" in tensors.tensors else "encoder."
  shapes: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  ignored = [name for name in tensors.tensors if not name.startswith(prefix)]
  return config, stored_parameters(tensors, _sources(prefix), shapes, dtype, ignored=ignored)


def _sources(prefix: str) -> dict[str, Source]:
  whole = {path: Source(name=prefix + name, form=form) for path, (name, form) in _ENCODER.items()}
  return whole | {
    f"layers/{path}": Source(name=f"{prefix}layers.{{layer}}.{name}", form=form)
    for path, (name, form) in _LAYER.items()
  }


def _config(folder: Path, record: Mapping[str, Any]) -> WhisperConfig:
  where = folder / CONFIG_NAME
  check_fixed(where, record, {"activation_function": "gelu"})
  bins = record.get("num_mel_bins", 80)
  settings = {**_PUBLISHED, "feature_size": bins, **(read_extractor_settings(folder) or {})}
  check_fixed(f"{folder}, feature extractor", settings, {**_FIXED, "feature_size": bins})
  try:
    config = WhisperConfig(
      num_layers=record["encoder_layers"],
      model_dim=record["d_model"],
      num_heads=record["encoder_attention_heads"],
      ffn_dim=record["encoder_ffn_dim"],
      log_mel=WhisperLogMelConfig(
        num_mel_bins=bins,
        fft_size=settings["n_fft"],
        hop=settings["hop_length"],
        num_samples=settings["chunk_length"] * _SAMPLE_RATE,
      ),
    )
  except KeyError as error:
    raise UserError(f"{where} lacks {error}, which every Whisper's has") from error
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} does not describe a Whisper: {error}") from error
  positions = record.get("max_source_positions", 1500)
  if positions != config.window_frames:
    raise UserError(
      f"{where}: max_source_positions is {positions}, but the feature extractor's window of "
      f"{config.max_samples} samples has {config.window_frames} frames; copy the "
      "preprocessor_config.json that was published with the weights"
    )
  return config
