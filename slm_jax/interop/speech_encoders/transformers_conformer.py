"""Names of the tensors of a Conformer block in transformers, where Parakeet and LASR keep the same."""

from collections.abc import Iterable

from slm_jax.interop.speech_encoders.torch_layout import Form, Source

# Counts training steps; says nothing at inference.
_IGNORED = "num_batches_tracked"
# Linear layers: our path, their name.
_FEED_FORWARD = {"wi": "linear1", "wo": "linear2"}
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
_NORMS = {
  "ffn_in_norm": "norm_feed_forward1",
  "attention_norm": "norm_self_att",
  "conv_norm": "norm_conv",
  "ffn_out_norm": "norm_feed_forward2",
  "norm": "norm_out",
}
# A batch norm's parameters, of both kinds.
BATCH_NORM = {
  "scale": "weight",
  "offset": "bias",
  "mean": "running_mean",
  "variance": "running_var",
}


def layer(
  path: str, name: str, form: Form, *, bias: bool = True, part: tuple[int, int] = (0, 1)
) -> dict[str, Source]:
  """A layer's kernel and, where it has one, bias; `part` is of `Source`."""
  kernel = {f"{path}/kernel": Source(name=f"{name}.weight", form=form, part=part)}
  return kernel | ({f"{path}/bias": Source(name=f"{name}.bias", part=part)} if bias else {})


def norm(path: str, name: str, *, bias: bool = True) -> dict[str, Source]:
  """A layer norm's scale and, where it has one, bias."""
  scale = {f"{path}/scale": Source(name=f"{name}.weight")}
  return scale | ({f"{path}/bias": Source(name=f"{name}.bias")} if bias else {})


def block_sources(
  prefix: str, *, norm_bias: bool, linear_bias: bool, conv_bias: bool
) -> dict[str, Source]:
  """The parameters of a stack of `batch_norm_conformer` blocks, by path; `prefix` is the encoder's.

  What is particular to a family's attention is not among them.
  """
  sources: dict[str, Source] = {}
  at = f"{prefix}layers.{{layer}}."
  for path, name in _NORMS.items():
    sources |= norm(f"layers/{path}", at + name, bias=norm_bias)
  for path, module in (("ffn_in", "feed_forward1"), ("ffn_out", "feed_forward2")):
    for inner, name in _FEED_FORWARD.items():
      sources |= layer(f"layers/{path}/{inner}", f"{at}{module}.{name}", "linear", bias=linear_bias)
  for inner, name in _ATTENTION.items():
    path = f"layers/attention/{inner}"
    sources |= layer(path, f"{at}self_attn.{name}", "linear", bias=linear_bias)
  conv = f"{at}conv."
  for index, path in enumerate(("value", "gate")):
    sources |= layer(
      f"layers/conv/{path}", f"{conv}pointwise_conv1", "pointwise", bias=conv_bias, part=(index, 2)
    )
  depthwise = "layers/conv/depthwise"
  sources |= layer(depthwise, f"{conv}depthwise_conv", "depthwise", bias=conv_bias)
  for path, name in BATCH_NORM.items():
    sources[f"{depthwise}/{path}"] = Source(name=f"{conv}norm.{name}")
  return sources | layer("layers/conv/out", f"{conv}pointwise_conv2", "pointwise", bias=conv_bias)


def step_counters(names: Iterable[str]) -> list[str]:
  """Those of the names that count a batch norm's training steps."""
  return [name for name in names if name.endswith(_IGNORED)]
