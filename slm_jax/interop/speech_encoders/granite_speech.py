"""Granite-Speech's encoder out of a Hugging Face folder of the whole model, or of the encoder alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from slm_jax.audio.granite_speech_log_mel import (
  FFT_SIZE,
  HOP,
  SAMPLE_RATE,
  WINDOW,
  GraniteSpeechLogMelConfig,
)
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import CONFIG_NAME, TensorFolder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.interop.speech_encoders.extractor_settings import check_fixed, read_extractor_settings
from slm_jax.interop.speech_encoders.torch_layout import Source, stored_parameters
from slm_jax.interop.speech_encoders.transformers_conformer import (
  BATCH_NORM,
  layer,
  norm,
  step_counters,
)
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoders.granite_speech import GraniteSpeechConfig

# What the encoder's config leaves out has these values in transformers.
_DEFAULTS: dict[str, Any] = {
  "input_dim": 160,
  "num_layers": 10,
  "hidden_dim": 1024,
  "feedforward_mult": 4,
  "num_heads": 8,
  "dim_head": None,
  "output_dim": 42,
  "context_size": 200,
  "max_pos_emb": 512,
  "conv_kernel_size": 15,
  "conv_expansion_factor": 2,
}
_SPECTRUM = {"n_fft": FFT_SIZE, "win_length": WINDOW, "hop_length": HOP}
_BARE = "granite_speech_encoder"
_NORMS = {
  "ffn_in_norm": "ff1.pre_norm",
  "attention_norm": "attn.pre_norm",
  "conv_norm": "conv.norm",
  "ffn_out_norm": "ff2.pre_norm",
  "norm": "post_norm",
}
# The layers with a bias.
_LINEAR = {
  "ffn_in/wi": "ff1.up_proj",
  "ffn_in/wo": "ff1.down_proj",
  "attention/out": "attn.to_out",
  "ffn_out/wi": "ff2.up_proj",
  "ffn_out/wo": "ff2.down_proj",
}


def open_granite_speech(
  folder: Path, record: Mapping[str, Any], dtype: str | None
) -> tuple[GraniteSpeechConfig, dict[str, StoredParameter]]:
  """Config and parameters, unread, of the encoder in a folder that transformers'
  `GraniteSpeechForConditionalGeneration` or `GraniteSpeechCTCEncoder` saved; projector and language
  model stay unread.

  The frontend's settings, where the folder has none, are those of every published Granite-Speech.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  config = _config(folder, record)
  tensors = TensorFolder(folder)
  prefix = "" if record["model_type"] == _BARE else "encoder."
  if prefix and f"model.{prefix}out.weight" in tensors.tensors:
    prefix = f"model.{prefix}"
  ignored = step_counters(tensors.tensors)
  ignored += [name for name in tensors.tensors if not name.startswith(prefix)]
  shapes: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  return config, stored_parameters(
    tensors, _sources(config, prefix), shapes, dtype, ignored=ignored
  )


def _sources(config: GraniteSpeechConfig, prefix: str) -> dict[str, Source]:
  return {
    **layer("projection", f"{prefix}input_linear", "linear"),
    **layer("intermediate_ctc_head", f"{prefix}out", "linear"),
    **layer("condition", f"{prefix}out_mid", "linear"),
    **_stack("lower_layers", prefix, 0),
    **_stack("upper_layers", prefix, config.num_layers // 2),
  }


def _stack(path: str, prefix: str, first: int) -> dict[str, Source]:
  at = f"{prefix}layers.{{layer}}."
  sources: dict[str, Source] = {}
  for inner, name in _NORMS.items():
    sources |= norm(inner, at + name)
  for inner, name in _LINEAR.items():
    sources |= layer(inner, at + name, "linear")
  sources |= layer("attention/query", f"{at}attn.to_q", "linear", bias=False)
  for index, inner in enumerate(("key", "value")):
    sources |= layer(f"attention/{inner}", f"{at}attn.to_kv", "linear", bias=False, part=(index, 2))
  sources["attention/distances"] = Source(name=f"{at}attn.rel_pos_emb.weight")
  for index, inner in enumerate(("value", "gate")):
    sources |= layer(f"conv/{inner}", f"{at}conv.up_conv", "pointwise", part=(index, 2))
  sources |= layer("conv/depthwise", f"{at}conv.depth_conv.conv", "depthwise", bias=False)
  for inner, name in BATCH_NORM.items():
    sources[f"conv/depthwise/{inner}"] = Source(name=f"{at}conv.batch_norm.{name}")
  sources |= layer("conv/out", f"{at}conv.down_conv", "pointwise")
  return {
    f"{path}/{inner}": Source(
      name=source.name, form=source.form, part=source.part, first_layer=first
    )
    for inner, source in sources.items()
  }


def _config(folder: Path, record: Mapping[str, Any]) -> GraniteSpeechConfig:
  where = folder / CONFIG_NAME
  own = record if record["model_type"] == _BARE else record.get("encoder_config")
  if not isinstance(own, Mapping):
    raise UserError(f"{where}: encoder_config is {own!r}, expected a JSON object")
  settings = {**_DEFAULTS, **own}
  try:
    width, heads = settings["hidden_dim"], settings["num_heads"]
    return GraniteSpeechConfig(
      num_layers=settings["num_layers"],
      model_dim=width,
      num_heads=heads,
      head_dim=width // heads if settings["dim_head"] is None else settings["dim_head"],
      ffn_dim=width * settings["feedforward_mult"],
      conv_dim=width * settings["conv_expansion_factor"],
      intermediate_vocab_size=settings["output_dim"],
      conv_kernel_size=settings["conv_kernel_size"],
      context=settings["context_size"],
      max_distance=settings["max_pos_emb"],
      log_mel=GraniteSpeechLogMelConfig(num_mel_bins=_num_mel_bins(folder, settings["input_dim"])),
    )
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise UserError(f"{where} does not describe a Granite-Speech encoder: {error}") from error


def _num_mel_bins(folder: Path, input_dim: int) -> int:
  """Bins of the frontend, checked against the width that the model reads."""
  bins, odd = divmod(input_dim, 2)
  if odd:
    raise ValueError(f"input_dim {input_dim}, expected twice the mel bins")
  settings = read_extractor_settings(folder) or {}
  where = f"{folder}, feature extractor"
  expected = {**_SPECTRUM, "n_mels": bins}
  fixed = {
    "feature_extractor_type": "GraniteSpeechFeatureExtractor",
    "sampling_rate": SAMPLE_RATE,
    "feature_size": bins,
  }
  check_fixed(where, settings, {**fixed, **expected})
  check_fixed(where, settings.get("melspec_kwargs") or {}, {**expected, "sample_rate": SAMPLE_RATE})
  return bins
