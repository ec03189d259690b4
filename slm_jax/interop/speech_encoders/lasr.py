"""LASR out of a Hugging Face folder: CTC models such as google/medasr, and bare encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from slm_jax.audio.lasr_log_mel import LasrLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import CONFIG_NAME, TensorFolder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.interop.speech_encoders.extractor_settings import check_fixed, read_extractor_settings
from slm_jax.interop.speech_encoders.torch_layout import Source, stored_parameters
from slm_jax.interop.speech_encoders.transformers_conformer import (
  block_sources,
  layer,
  norm,
  step_counters,
)
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoders.lasr import LasrConfig

# What the encoder's config leaves out has these values in transformers.
_DEFAULTS: dict[str, Any] = {
  "hidden_size": 512,
  "num_hidden_layers": 17,
  "num_attention_heads": 8,
  "intermediate_size": 2048,
  "hidden_act": "silu",
  "attention_bias": False,
  "convolution_bias": False,
  "conv_kernel_size": 32,
  "subsampling_conv_channels": 256,
  "subsampling_conv_kernel_size": 5,
  "subsampling_conv_stride": 2,
  "num_mel_bins": 128,
  "layer_norm_eps": 1e-6,
  "feed_forward_residual_weights": (1.5, 0.5),
  "conv_residual_weights": (2.0, 1.0),
  "rope_parameters": None,
}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_ACTIVATIONS = ("silu", "swish")
# Those of the published extractor.
_FRONTEND = {"hop_length": 160, "n_fft": 512, "win_length": 400}
_FIXED_FRONTEND = {
  "feature_extractor_type": "LasrFeatureExtractor",
  "sampling_rate": 16_000,
  "padding_side": "right",
  "padding_value": 0.0,
}
_HEADLESS = "lasr_encoder"


def open_lasr(
  folder: Path, record: Mapping[str, Any], dtype: str | None
) -> tuple[LasrConfig, dict[str, StoredParameter]]:
  """Config and parameters, unread, of a folder that transformers' `LasrForCTC` or `LasrEncoder` saved.

  The CTC head's blank is config.json's pad_token_id. The frontend's settings, where the folder has
  none, are those of google/medasr.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  config = _config(folder, record)
  tensors = TensorFolder(folder)
  prefix = "" if record["model_type"] == _HEADLESS else "encoder."
  shapes: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  ignored = step_counters(tensors.tensors)
  return config, stored_parameters(
    tensors, _sources(config, prefix), shapes, dtype, ignored=ignored
  )


def _sources(config: LasrConfig, prefix: str) -> dict[str, Source]:
  sources = block_sources(
    prefix, norm_bias=False, linear_bias=config.linear_bias, conv_bias=config.conv_bias
  )
  for index in range(2):
    dense, conv = f"dense_{index}", f"conv_{index}"
    sources |= layer(f"subsampling/{dense}", f"{prefix}subsampler.{dense}", "linear")
    sources |= layer(f"subsampling/{conv}", f"{prefix}subsampler.{conv}", "conv1d")
  sources |= norm("norm", f"{prefix}out_norm", bias=False)
  if config.vocab_size:
    sources |= layer("ctc_head", "ctc_head", "pointwise")
  return sources


def _config(folder: Path, record: Mapping[str, Any]) -> LasrConfig:
  where = folder / CONFIG_NAME
  headless = record["model_type"] == _HEADLESS
  own = record if headless else record.get("encoder_config")
  if not isinstance(own, Mapping):
    raise UserError(f"{where}: encoder_config is {own!r}, expected a JSON object")
  settings = {**_DEFAULTS, **own}
  if settings["hidden_act"] not in _ACTIVATIONS:
    raise UserError(
      f"{where}: hidden_act is {settings['hidden_act']!r}, this program supports "
      f"{' and '.join(_ACTIVATIONS)}"
    )
  rope = {**_ROPE, **(settings["rope_parameters"] or {})}
  check_fixed(f"{where}, rope_parameters", rope, {"rope_type": "default"})
  vocab_size, blank_id = 0, 0
  if not headless:
    vocab_size, blank_id = record.get("vocab_size", 512), record.get("pad_token_id", 0)
  try:
    return LasrConfig(
      vocab_size=vocab_size,
      blank_id=blank_id,
      num_layers=settings["num_hidden_layers"],
      model_dim=settings["hidden_size"],
      num_heads=settings["num_attention_heads"],
      ffn_dim=settings["intermediate_size"],
      conv_kernel_size=settings["conv_kernel_size"],
      subsampling_channels=settings["subsampling_conv_channels"],
      subsampling_kernel_size=settings["subsampling_conv_kernel_size"],
      subsampling_stride=settings["subsampling_conv_stride"],
      linear_bias=settings["attention_bias"],
      conv_bias=settings["convolution_bias"],
      norm_epsilon=settings["layer_norm_eps"],
      ffn_weights=tuple(settings["feed_forward_residual_weights"]),
      conv_weights=tuple(settings["conv_residual_weights"]),
      rotary_base=rope["rope_theta"],
      log_mel=_log_mel(folder, settings["num_mel_bins"]),
    )
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} does not describe a LASR encoder: {error}") from error


def _log_mel(folder: Path, num_mel_bins: int) -> LasrLogMelConfig:
  settings = {**_FRONTEND, **(read_extractor_settings(folder) or {})}
  check_fixed(
    f"{folder}, feature extractor", settings, {**_FIXED_FRONTEND, "feature_size": num_mel_bins}
  )
  return LasrLogMelConfig(
    num_mel_bins=num_mel_bins,
    window=settings["win_length"],
    hop=settings["hop_length"],
    fft_size=settings["n_fft"],
  )
