"""Names of the tensors of Gemma's audio towers in transformers."""

from slm_jax.interop.speech_encoders.torch_layout import Source
from slm_jax.models.speech_encoders.gemma_audio_config import (
  Gemma3nAudioConfig,
  Gemma4AudioConfig,
)
from slm_jax.models.speech_encoders.gemma_audio_linear import BOUNDS

# Both towers have this one.
PROJECTION = "subsample_conv_projection.input_proj_linear.weight"
# Of one layer; our path, then their name in Gemma 3n and in Gemma 4.
_LINEARS = {
  "attention/query": ("attention.attn.q_proj", "self_attn.q_proj"),
  "attention/key": ("attention.attn.k_proj", "self_attn.k_proj"),
  "attention/value": ("attention.attn.v_proj", "self_attn.v_proj"),
  "attention/out": ("attention.post", "self_attn.post"),
  "conv/start": ("lconv1d.linear_start", "lconv1d.linear_start"),
  "conv/out": ("lconv1d.linear_end", "lconv1d.linear_end"),
  "ffn_in/wi": ("ffw_layer_start.ffw_layer_1", "feed_forward1.ffw_layer_1"),
  "ffn_in/wo": ("ffw_layer_start.ffw_layer_2", "feed_forward1.ffw_layer_2"),
  "ffn_out/wi": ("ffw_layer_end.ffw_layer_1", "feed_forward2.ffw_layer_1"),
  "ffn_out/wo": ("ffw_layer_end.ffw_layer_2", "feed_forward2.ffw_layer_2"),
}
_NORMS = {
  "attention_norm": ("attention.pre_attn_norm", "norm_pre_attn"),
  "attention_out_norm": ("attention.post_norm", "norm_post_attn"),
  "conv/norm": ("lconv1d.pre_layer_norm", "lconv1d.pre_layer_norm"),
  "conv/conv_norm": ("lconv1d.conv_norm", "lconv1d.conv_norm"),
  "ffn_in/norm": ("ffw_layer_start.pre_layer_norm", "feed_forward1.pre_layer_norm"),
  "ffn_in/out_norm": ("ffw_layer_start.post_layer_norm", "feed_forward1.post_layer_norm"),
  "ffn_out/norm": ("ffw_layer_end.pre_layer_norm", "feed_forward2.pre_layer_norm"),
  "ffn_out/out_norm": ("ffw_layer_end.post_layer_norm", "feed_forward2.post_layer_norm"),
  "norm": ("norm", "norm_out"),
}
_PER_DIM_SCALE = ("attention.attn.per_dim_scale", "self_attn.per_dim_scale")
_POSITION = (
  "attention.attn.relative_position_embedding.pos_proj.weight",
  "self_attn.relative_k_proj.weight",
)


def sources(config: Gemma3nAudioConfig | Gemma4AudioConfig, prefix: str) -> dict[str, Source]:
  """Where every parameter lies, by path; `prefix` is the tower's."""
  fourth = isinstance(config, Gemma4AudioConfig)
  at = f"{prefix}{'layers' if fourth else 'conformer'}.{{layer}}."
  found: dict[str, Source] = {}
  for path, names in _LINEARS.items():
    name = at + names[fourth]
    weight = f"{name}.linear.weight" if fourth else f"{name}.weight"
    found[f"layers/{path}/dense/kernel"] = Source(name=weight, form="linear")
    if config.clipped_linears:
      found |= {f"layers/{path}/{bound}": Source(name=f"{name}.{bound}") for bound in BOUNDS}
  for path, names in _NORMS.items():
    found[f"layers/{path}/scale"] = Source(name=f"{at}{names[fourth]}.weight")
  depthwise = f"{at}lconv1d.depthwise_conv1d.weight"
  found["layers/conv/depthwise/kernel"] = Source(name=depthwise, form="depthwise")
  found["layers/attention/per_dim_scale"] = Source(name=at + _PER_DIM_SCALE[fourth])
  position = Source(name=at + _POSITION[fourth], form="linear")
  found["layers/attention/position/kernel"] = position
  for index in range(2):
    name = f"{prefix}subsample_conv_projection.{'layer' if fourth else 'conv_'}{index}"
    found[f"subsampling/kernel_{index}"] = Source(name=f"{name}.conv.weight", form="conv2d")
    found[f"subsampling/scale_{index}"] = Source(name=f"{name}.norm.weight")
  found["subsampling/projection/kernel"] = Source(name=prefix + PROJECTION, form="linear")
  if fourth:
    found["output/kernel"] = Source(name=f"{prefix}output_proj.weight", form="linear")
    found["output/bias"] = Source(name=f"{prefix}output_proj.bias")
  return found
