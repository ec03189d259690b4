"""w2v-BERT 2.0 out of a Hugging Face folder, with or without a CTC head."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from slm_jax.audio.kaldi_fbank import KaldiFbankConfig
from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import CONFIG_NAME, TensorFolder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.interop.speech_encoders.extractor_settings import check_fixed, read_extractor_settings
from slm_jax.interop.speech_encoders.torch_layout import Source, stored_parameters
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_encoders.w2v_bert_config import (
  ACTIVATIONS,
  POSITIONS,
  STACKED,
  W2vBertAdapterConfig,
  W2vBertConfig,
)

# What config.json leaves out has these values in transformers; most are those of facebook/w2v-bert-2.0.
_DEFAULTS: dict[str, Any] = {
  "vocab_size": None,
  "pad_token_id": 0,
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "intermediate_size": 4096,
  "feature_projection_input_dim": 160,
  "hidden_act": "swish",
  "layer_norm_eps": 1e-5,
  "conv_depthwise_kernel_size": 31,
  "position_embeddings_type": "relative_key",
  "left_max_position_embeddings": 64,
  "right_max_position_embeddings": 8,
  "rotary_embedding_base": 10_000,
  "add_adapter": False,
  "adapter_kernel_size": 3,
  "adapter_stride": 2,
  "num_adapter_layers": 1,
  "adapter_act": "relu",
  "use_intermediate_ffn_before_adapter": False,
  "output_hidden_size": None,
}
# The extractor's only numbers of choice are its bins, and those the model's config.json tells too.
_FIXED_FRONTEND = {
  "feature_extractor_type": "SeamlessM4TFeatureExtractor",
  "sampling_rate": 16_000,
  "stride": STACKED,
  "padding_side": "right",
}
_BASE_PREFIX = "wav2vec2_bert."
_HEAD = "lm_head."
# Used in transformers' own training alone.
_IGNORED = ("masked_spec_embed",)
# Paths and names within some part of the model.
_Sources = dict[str, Source]


def _linear(path: str, name: str, *, bias: bool = True) -> _Sources:
  kernel = {f"{path}/kernel": Source(name=f"{name}.weight", form="linear")}
  return kernel | ({f"{path}/bias": Source(name=f"{name}.bias")} if bias else {})


def _norm(path: str, name: str) -> _Sources:
  return {
    f"{path}/scale": Source(name=f"{name}.weight"),
    f"{path}/bias": Source(name=f"{name}.bias"),
  }


def _feed_forward(path: str, name: str) -> _Sources:
  wi, wo = f"{name}.intermediate_dense", f"{name}.output_dense"
  return _linear(f"{path}/wi", wi) | _linear(f"{path}/wo", wo)


def _attention(name: str, positions: str | None) -> _Sources:
  found: _Sources = {}
  for path, part in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
    found |= _linear(f"attention/{path}", f"{name}.linear_{part}")
  if positions == "relative_key":
    found["attention/distances"] = Source(name=f"{name}.distance_embedding.weight")
  elif positions == "relative":
    found |= _linear("attention/position", f"{name}.linear_pos", bias=False)
    found["attention/content_bias"] = Source(name=f"{name}.pos_bias_u")
    found["attention/position_bias"] = Source(name=f"{name}.pos_bias_v")
  return found


def _block(positions: str | None) -> _Sources:
  conv = "conv_module"
  return {
    **_feed_forward("ffn_in", "ffn1"),
    **_norm("ffn_in_norm", "ffn1_layer_norm"),
    **_attention("self_attn", positions),
    **_norm("attention_norm", "self_attn_layer_norm"),
    **_norm("conv/norm", f"{conv}.layer_norm"),
    "conv/value/kernel": Source(
      name=f"{conv}.pointwise_conv1.weight", form="pointwise", part=(0, 2)
    ),
    "conv/gate/kernel": Source(
      name=f"{conv}.pointwise_conv1.weight", form="pointwise", part=(1, 2)
    ),
    "conv/depthwise/kernel": Source(name=f"{conv}.depthwise_conv.weight", form="depthwise"),
    **_norm("conv/conv_norm", f"{conv}.depthwise_layer_norm"),
    "conv/out/kernel": Source(name=f"{conv}.pointwise_conv2.weight", form="pointwise"),
    **_feed_forward("ffn_out", "ffn2"),
    **_norm("ffn_out_norm", "ffn2_layer_norm"),
    **_norm("norm", "final_layer_norm"),
  }


def _adapter_layer() -> _Sources:
  found = _attention("self_attn", None) | _feed_forward("ffn", "ffn")
  found |= _norm("ffn_norm", "ffn_layer_norm")
  for path, name in (("residual_conv", "residual"), ("attention_conv", "self_attn")):
    found |= _norm(f"{path}_norm", f"{name}_layer_norm")
    found[f"{path}/kernel"] = Source(name=f"{name}_conv.weight", form="conv1d")
    found[f"{path}/bias"] = Source(name=f"{name}_conv.bias")
  return found


def _sources(config: W2vBertConfig, base: str) -> _Sources:
  """Where every parameter lies; `base` is the prefix of all but the head."""

  def at(path: str, name: str, within: _Sources) -> _Sources:
    return {
      path + inner: dataclasses.replace(source, name=name + source.name)
      for inner, source in within.items()
    }

  sources = at("layers/", f"{base}encoder.layers.{{layer}}.", _block(config.positions))
  within = _norm("feature_norm", "layer_norm") | _linear("projection", "projection")
  sources |= at("", f"{base}feature_projection.", within)
  if config.vocab_size:
    sources |= at("", "", _linear("ctc_head", "lm_head"))
  if adapter := config.adapter:
    if adapter.intermediate_ffn:
      sources |= at("adapter/", base, _feed_forward("intermediate_ffn", "intermediate_ffn"))
    if adapter.output_dim != config.model_dim:
      within = _linear("projection", "proj") | _norm("projection_norm", "proj_layer_norm")
      sources |= at("adapter/", f"{base}adapter.", within)
    for index in range(adapter.num_layers):
      name = f"{base}adapter.layers.{index}."
      sources |= at(f"adapter/layers_{index}/", name, _adapter_layer())
  return sources


def open_w2v_bert(
  folder: Path, record: Mapping[str, Any], dtype: str | None
) -> tuple[W2vBertConfig, dict[str, StoredParameter]]:
  """Config and parameters, unread, of a folder that transformers' `Wav2Vec2BertModel` or a model
  around it saved; of the heads, `Wav2Vec2BertForCTC`'s alone is read.

  The head's blank is config.json's pad_token_id. The frontend's settings, where the folder has none,
  are those of every published one.

  Raises:
    UserError: an option is not supported, or the weights are not those of the config.
  """
  tensors = TensorFolder(folder)
  config = _config(folder, {**_DEFAULTS, **record}, has_head=f"{_HEAD}weight" in tensors.tensors)
  # The bare model's tensors carry no prefix, those of models around it do.
  prefixed = any(name.startswith(_BASE_PREFIX) for name in tensors.tensors)
  base = _BASE_PREFIX if prefixed else ""
  shapes: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
  ignored = [base + name for name in _IGNORED]
  if prefixed:
    ignored += [name for name in tensors.tensors if not name.startswith((base, _HEAD))]
  return config, stored_parameters(tensors, _sources(config, base), shapes, dtype, ignored=ignored)


def _config(folder: Path, settings: Mapping[str, Any], *, has_head: bool) -> W2vBertConfig:
  where = folder / CONFIG_NAME
  for name, known in (
    ("hidden_act", tuple(ACTIVATIONS)),
    ("adapter_act", tuple(ACTIVATIONS)),
    ("position_embeddings_type", POSITIONS),
  ):
    if settings[name] not in known:
      raise UserError(
        f"{where}: {name} is {settings[name]!r}, this program supports "
        f"{', '.join(str(one) for one in known)}"
      )
  if settings["use_intermediate_ffn_before_adapter"] and not settings["add_adapter"]:
    raise UserError(
      f"{where}: use_intermediate_ffn_before_adapter is true and add_adapter false; set it to false"
    )
  vocab_size, blank_id = (settings["vocab_size"], settings["pad_token_id"]) if has_head else (0, 0)
  if vocab_size is None or blank_id is None:
    raise UserError(
      f"{where}: the weights have a CTC head, expected vocab_size and pad_token_id (its blank), not null"
    )
  try:
    adapter = None
    if settings["add_adapter"]:
      adapter = W2vBertAdapterConfig(
        output_dim=settings["output_hidden_size"] or settings["hidden_size"],
        num_layers=settings["num_adapter_layers"],
        kernel_size=settings["adapter_kernel_size"],
        stride=settings["adapter_stride"],
        activation=settings["adapter_act"],
        intermediate_ffn=settings["use_intermediate_ffn_before_adapter"],
      )
    return W2vBertConfig(
      vocab_size=vocab_size,
      blank_id=blank_id,
      num_layers=settings["num_hidden_layers"],
      model_dim=settings["hidden_size"],
      num_heads=settings["num_attention_heads"],
      ffn_dim=settings["intermediate_size"],
      conv_kernel_size=settings["conv_depthwise_kernel_size"],
      activation=settings["hidden_act"],
      positions=settings["position_embeddings_type"],
      left_positions=settings["left_max_position_embeddings"],
      right_positions=settings["right_max_position_embeddings"],
      rotary_base=settings["rotary_embedding_base"],
      layer_norm_eps=settings["layer_norm_eps"],
      adapter=adapter,
      fbank=KaldiFbankConfig(
        num_mel_bins=_num_mel_bins(folder, settings["feature_projection_input_dim"])
      ),
    )
  except (TypeError, ValueError) as error:
    raise UserError(f"{where} does not describe a w2v-BERT 2.0: {error}") from error


def _num_mel_bins(folder: Path, input_dim: int) -> int:
  """Bins of the frontend, checked against the width that the model reads."""
  bins, odd = divmod(input_dim, STACKED)
  if odd:
    raise ValueError(
      f"feature_projection_input_dim {input_dim}, expected {STACKED} times the mel bins"
    )
  expected = {**_FIXED_FRONTEND, "num_mel_bins": bins, "feature_size": bins}
  check_fixed(f"{folder}, feature extractor", read_extractor_settings(folder) or {}, expected)
  return bins
