"""Parakeet out of a Hugging Face folder: CTC models, bare encoders, and the encoders of transducers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from slm_jax.audio.parakeet_log_mel import ParakeetLogMelConfig
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import CONFIG_NAME, TensorFolder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.interop.speech_encoders.extractor_settings import check_fixed, read_extractor_settings
from slm_jax.interop.speech_encoders.torch_layout import Source, stored_parameters
from slm_jax.interop.speech_encoders.transformers_conformer import (
  block_sources,
  layer,
  step_counters,
)
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoders.parakeet import ParakeetConfig

# What the encoder's config leaves out has these values in transformers.
_DEFAULTS: dict[str, Any] = {
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 8,
  "intermediate_size": 4096,
  "hidden_act": "silu",
  "attention_bias": True,
  "convolution_bias": True,
  "conv_kernel_size": 9,
  "subsampling_factor": 8,
  "subsampling_conv_channels": 256,
  "subsampling_conv_kernel_size": 3,
  "subsampling_conv_stride": 2,
  "num_mel_bins": 80,
  "scale_input": True,
}
_FIXED = {"subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2}
_ACTIVATIONS = ("silu", "swish")
# Every published extractor has these; only the bins differ.
_FRONTEND = {"hop_length": 160, "n_fft": 512, "win_length": 400, "preemphasis": 0.97}
_FIXED_FRONTEND = {
  "feature_extractor_type": "ParakeetFeatureExtractor",
  "sampling_rate": 16_000,
  "padding_side": "right",
  "padding_value": 0.0,
}
_HEADLESS = "parakeet_encoder"
_CTC = "parakeet_ctc"
# What transducers have besides the encoder.
_TRANSDUCER = ("decoder.", "joint.", "encoder_projector.")


def open_parakeet(
  folder: Path, record: Mapping[str, Any], dtype: str | None
) -> tuple[ParakeetConfig, dict[str, StoredParameter]]:
  """Config and parameters, unread, of a folder that transformers' `ParakeetForCTC`,
  `ParakeetEncoder`, `ParakeetForRNNT` or `ParakeetForTDT` saved.

  Of a transducer, the encoder is read alone. The CTC head's blank is config.json's pad_token_id. The
  frontend's settings, where the folder has none, are those of every published Parakeet.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  kind = record["model_type"]
  config = _config(folder, record)
  tensors = TensorFolder(folder)
  prefix = "" if kind == _HEADLESS else "encoder."
  shapes: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  ignored = step_counters(tensors.tensors)
  if kind not in (_CTC, _HEADLESS):
    ignored += [name for name in tensors.tensors if name.startswith(_TRANSDUCER)]
  return config, stored_parameters(
    tensors, _sources(config, prefix), shapes, dtype, ignored=ignored
  )


def _sources(config: ParakeetConfig, prefix: str) -> dict[str, Source]:
  sources = block_sources(
    prefix, norm_bias=True, linear_bias=config.linear_bias, conv_bias=config.conv_bias
  )
  attention = f"{prefix}layers.{{layer}}.self_attn."
  sources |= layer("layers/attention/position", f"{attention}relative_k_proj", "linear", bias=False)
  sources["layers/attention/content_bias"] = Source(name=f"{attention}bias_u")
  sources["layers/attention/position_bias"] = Source(name=f"{attention}bias_v")
  # Their list counts activations too: convolution, ReLU; depthwise, pointwise, ReLU; …
  subsampling = f"{prefix}subsampling."
  sources |= layer("subsampling/conv_0", f"{subsampling}layers.0", "conv2d")
  for index in range(1, config.subsampling_factor.bit_length() - 1):
    depthwise, pointwise = (f"{subsampling}layers.{3 * index + i}" for i in (-1, 0))
    sources |= layer(f"subsampling/depthwise_{index}", depthwise, "depthwise2d")
    sources |= layer(f"subsampling/pointwise_{index}", pointwise, "pointwise2d")
  sources |= layer("subsampling/projection", f"{subsampling}linear", "linear")
  if config.vocab_size:
    sources |= layer("ctc_head", "ctc_head", "pointwise")
  return sources


def _config(folder: Path, record: Mapping[str, Any]) -> ParakeetConfig:
  where = folder / CONFIG_NAME
  kind = record["model_type"]
  own = record if kind == _HEADLESS else record.get("encoder_config")
  if not isinstance(own, Mapping):
    raise UserError(f"{where}: encoder_config is {own!r}, expected a JSON object")
  settings = {**_DEFAULTS, **own}
  check_fixed(where, settings, _FIXED)
  if settings["hidden_act"] not in _ACTIVATIONS:
    raise UserError(
      f"{where}: hidden_act is {settings['hidden_act']!r}, this program supports "
      f"{' and '.join(_ACTIVATIONS)}"
    )
  vocab_size, blank_id = 0, 0
  if kind == _CTC:
    vocab_size, blank_id = record.get("vocab_size", 1025), record.get("pad_token_id", 1024)
  try:
    return ParakeetConfig(
      vocab_size=vocab_size,
      blank_id=blank_id,
      num_layers=settings["num_hidden_layers"],
      model_dim=settings["hidden_size"],
      num_heads=settings["num_attention_heads"],
      ffn_dim=settings["intermediate_size"],
      conv_kernel_size=settings["conv_kernel_size"],
      subsampling_factor=settings["subsampling_factor"],
      subsampling_channels=settings["subsampling_conv_channels"],
      linear_bias=settings["attention_bias"],
      conv_bias=settings["convolution_bias"],
      scale_input=settings["scale_input"],
      log_mel=_log_mel(folder, settings["num_mel_bins"]),
    )
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} does not describe a Parakeet: {error}") from error


def _log_mel(folder: Path, num_mel_bins: int) -> ParakeetLogMelConfig:
  settings = {**_FRONTEND, **(read_extractor_settings(folder) or {})}
  check_fixed(
    f"{folder}, feature extractor", settings, {**_FIXED_FRONTEND, "feature_size": num_mel_bins}
  )
  return ParakeetLogMelConfig(
    num_mel_bins=num_mel_bins,
    window=settings["win_length"],
    hop=settings["hop_length"],
    fft_size=settings["n_fft"],
    pre_emphasis=settings["preemphasis"] or 0.0,
  )
