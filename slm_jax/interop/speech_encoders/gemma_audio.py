"""The audio towers of Gemma 3n and Gemma 4 out of Hugging Face folders: alone, or in the whole model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from slm_jax.audio.gemma_log_mel import GEMMA4_LOG_MEL, GemmaLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import CONFIG_NAME, TensorFolder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.interop.speech_encoders.extractor_settings import check_fixed, read_extractor_settings
from slm_jax.interop.speech_encoders.gemma_audio_names import PROJECTION, sources
from slm_jax.interop.speech_encoders.torch_layout import stored_parameters
from slm_jax.interop.stored_parameter import Index, StoredParameter, StoredTensor
from slm_jax.models.speech_encoders.gemma_audio_config import (
  Gemma3nAudioConfig,
  Gemma4AudioConfig,
)
from slm_jax.models.speech_encoders.gemma_audio_linear import BOUNDS

# What a config leaves out has these values in transformers.
_GEMMA3N: dict[str, Any] = {
  "input_feat_size": 128,
  "hidden_size": 1536,
  "rms_norm_eps": 1e-6,
  "gradient_clipping": 1e10,
  "conf_attention_context_left": 13,
  "conf_attention_context_right": 0,
  "conf_attention_logit_cap": 50.0,
  "conf_num_attention_heads": 8,
  "conf_num_hidden_layers": 12,
  "conf_conv_kernel_size": 5,
  "conf_reduction_factor": 4,
  "conf_residual_weight": 0.5,
  "sscp_conv_channel_size": (128, 32),
  "sscp_conv_group_norm_eps": 1e-3,
}
_GEMMA3N_FIXED = {
  "sscp_conv_kernel_size": [[3, 3], [3, 3]],
  "sscp_conv_stride_size": [[2, 2], [2, 2]],
}
_GEMMA4: dict[str, Any] = {
  "hidden_size": 1024,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "subsampling_conv_channels": (128, 32),
  "conv_kernel_size": 5,
  "residual_weight": 0.5,
  "attention_chunk_size": 12,
  "attention_context_left": 13,
  "attention_logit_cap": 50.0,
  "use_clipped_linears": True,
  "rms_norm_eps": 1e-6,
  "gradient_clipping": 1e10,
  "output_proj_dims": 1536,
}
_GEMMA4_FIXED = {
  "hidden_act": "silu",
  "attention_context_right": 0,
  "attention_invalid_logits_value": -1e9,
}
# Of the feature extractors.
_FRONTEND_FIXED = {
  "sampling_rate": 16_000,
  "padding_side": "right",
  "padding_value": 0,
  "dither": 0,
  "input_scale_factor": 1,
  "per_bin_mean": None,
  "per_bin_stddev": None,
}

Opened = tuple[Gemma3nAudioConfig | Gemma4AudioConfig, dict[str, StoredParameter]]


def open_gemma3n_audio(folder: Path, record: Mapping[str, Any], dtype: str | None) -> Opened:
  """Config and parameters, unread, of a folder of transformers' `Gemma3nAudioEncoder` or of a model
  around it, whose other tensors stay unread.

  The frontend's settings, where the folder has none, are those of every published Gemma 3n. The
  chunks that attention is computed in say nothing of the result.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  where, settings = _settings(folder, record, "gemma3n_audio", _GEMMA3N)
  check_fixed(where, settings, _GEMMA3N_FIXED)
  log_mel = _log_mel(folder, "Gemma3nAudioFeatureExtractor", GemmaLogMelConfig())
  if log_mel.num_mel_bins != settings["input_feat_size"]:
    raise UserError(
      f"{where}: input_feat_size is {settings['input_feat_size']}, the feature extractor's feature_size "
      f"is {log_mel.num_mel_bins}; expected the same"
    )
  try:
    config = Gemma3nAudioConfig(
      num_layers=settings["conf_num_hidden_layers"],
      model_dim=settings["hidden_size"],
      num_heads=settings["conf_num_attention_heads"],
      subsampling_channels=tuple(settings["sscp_conv_channel_size"]),
      conv_kernel_size=settings["conf_conv_kernel_size"],
      left_context=max(0, settings["conf_attention_context_left"] - 1),
      right_context=settings["conf_attention_context_right"],
      logit_cap=settings["conf_attention_logit_cap"],
      residual_weight=settings["conf_residual_weight"],
      clipping=settings["gradient_clipping"],
      conv_norm_epsilon=settings["rms_norm_eps"],
      group_norm_epsilon=settings["sscp_conv_group_norm_eps"],
      reduction=max(1, settings["conf_reduction_factor"]),
      log_mel=log_mel,
    )
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} does not describe Gemma 3n's audio tower: {error}") from error
  return config, _parameters(folder, config, dtype)


def open_gemma4_audio(folder: Path, record: Mapping[str, Any], dtype: str | None) -> Opened:
  """Config and parameters, unread, of a folder of transformers' `Gemma4AudioModel` or of a model
  around it, whose other tensors stay unread.

  The frontend's settings, where the folder has none, are those of every published Gemma 4. The window
  and the frontend are transformers'; Google's own code (google-deepmind/gemma) sees a frame more back,
  and cuts features half a window later with its Hann window moved by half a sample.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  where, settings = _settings(folder, record, "gemma4_audio", _GEMMA4)
  check_fixed(where, settings, _GEMMA4_FIXED)
  left, chunk = (settings[f"attention_{name}"] for name in ("context_left", "chunk_size"))
  # transformers counts distances from half of a chunk and its context, which elsewhere is not theirs.
  if left < 2 or chunk not in (left - 1, left):
    raise UserError(
      f"{where}: attention_chunk_size is {chunk}, attention_context_left {left}; this program supports "
      "a context of 2 or more and a chunk as long as it, or one less"
    )
  try:
    config = Gemma4AudioConfig(
      num_layers=settings["num_hidden_layers"],
      model_dim=settings["hidden_size"],
      num_heads=settings["num_attention_heads"],
      subsampling_channels=tuple(settings["subsampling_conv_channels"]),
      conv_kernel_size=settings["conv_kernel_size"],
      left_context=left - 2,
      logit_cap=settings["attention_logit_cap"],
      residual_weight=settings["residual_weight"],
      clipping=settings["gradient_clipping"],
      conv_norm_epsilon=settings["rms_norm_eps"],
      clipped_linears=settings["use_clipped_linears"],
      output_dim=settings["output_proj_dims"],
      log_mel=_log_mel(folder, "Gemma4AudioFeatureExtractor", GEMMA4_LOG_MEL),
    )
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} does not describe Gemma 4's audio tower: {error}") from error
  return config, _parameters(folder, config, dtype)


def _settings(
  folder: Path, record: Mapping[str, Any], alone: str, defaults: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  """(what to call the tower's config in a message, its settings); `alone` is a tower's own model_type."""
  where = str(folder / CONFIG_NAME)
  if record["model_type"] == alone:
    return where, {**defaults, **record}
  found = record.get("audio_config")
  if found is None:
    raise UserError(f"{where}: audio_config is not there; this model has no audio tower")
  if not isinstance(found, Mapping):
    raise UserError(f"{where}: audio_config is {found!r}, expected a JSON object")
  return f"{where}, audio_config", {**defaults, **found}


def _log_mel(folder: Path, kind: str, published: GemmaLogMelConfig) -> GemmaLogMelConfig:
  settings = read_extractor_settings(folder) or {}
  where = f"{folder}, feature extractor"
  check_fixed(where, settings, {**_FRONTEND_FIXED, "feature_extractor_type": kind})
  # Saved are samples; the settings' own names are in milliseconds.
  names = {
    "num_mel_bins": "feature_size",
    "window": "frame_length",
    "hop": "hop_length",
    "fft_size": "fft_length",
    "min_hz": "min_frequency",
    "max_hz": "max_frequency",
    "preemphasis": "preemphasis",
    "preemphasis_in_frame": "preemphasis_htk_flavor",
    "floor": "mel_floor",
  }
  changes = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
  try:
    if published.lead and "window" in changes:
      changes["lead"] = changes["window"] // 2
    return dataclasses.replace(published, **changes)
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} is not supported: {error}") from error


def _parameters(
  folder: Path, config: Gemma3nAudioConfig | Gemma4AudioConfig, dtype: str | None
) -> dict[str, StoredParameter]:
  tensors = TensorFolder(folder)
  found = [name for name in tensors.tensors if name.endswith(PROJECTION)]
  if len(found) != 1:
    raise UserError(
      f"{folder} holds {len(found)} tensors whose names end in {PROJECTION}, expected one: the audio "
      "tower's"
    )
  prefix = found[0].removesuffix(PROJECTION)
  ignored = [name for name in tensors.tensors if not name.startswith(prefix)]
  for name, tensor in tensors.tensors.items():
    if name.startswith(prefix) and name.endswith(BOUNDS):
      tensors.tensors[name] = _finite(tensor, dtype or tensor.dtype)
  shapes: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  return stored_parameters(tensors, sources(config, prefix), shapes, dtype, ignored=ignored)


def _finite(tensor: StoredTensor, dtype: str) -> StoredTensor:
  """A bound of activations, where infinity means none: the largest number of the type in its place."""
  largest = float(ml_dtypes.finfo(dtype).max)

  def load(index: Index) -> np.ndarray:
    return np.clip(tensor.load(index), -largest, largest)

  return dataclasses.replace(tensor, load=load)
