"""What model a T5X checkpoint holds, which none says outright.

Names and shapes tell the sizes. They do not tell the activations, which T5X writes to config.gin.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from slm_jax.errors import UserError
from slm_jax.interop import t5x_format
from slm_jax.interop.safetensors_folder import write_bytes
from slm_jax.models.t5_config import T5Config

_SIDES = ("encoder", "decoder")
# Activations of the released models, by whether the FFN is gated: T5 1.1, mT5 and umT5; T5 1.0.
_USUAL_ACTIVATIONS = {True: ("gelu", "linear"), False: ("relu",)}
_ACTIVATIONS = re.compile(r"^[\w./]*\bmlp_activations\s*=\s*([(\[][^()\[\]]*[)\]])", re.MULTILINE)
# What T5X's models have as constants, so that neither a checkpoint nor a config.gin says it.
_FIXED = ("relpos_max_distance", "layer_norm_epsilon", "eos_id", "pad_id")
_OURS = {"swish": "silu"}  # Flax has two names for it
_TOLD_BY = {
  "vocab_size": "token_embedder/embedding",
  "emb_dim": "token_embedder/embedding",
  "num_encoder_layers": "encoder/layers_0/… or encoder/encoder/…",
  "num_decoder_layers": "decoder/layers_0/… or decoder/decoder/…",
  "num_heads": "encoder/relpos_bias/rel_embedding",
  "head_dim": "attention/query/kernel, whose width num_heads must divide",
  "mlp_dim": "mlp/wo/kernel",
}


def infer_config(path: Path | str, shapes: Mapping[str, tuple[int, ...]]) -> T5Config:
  """The config of a checkpoint, without dropout.

  A checkpoint without an output layer is T5 1.0's, with tied and scaled logits. Activations are
  those of a config.gin in the folder above if it has them, else those of the released models.

  Raises:
    UserError: something that only a named parameter could tell is not there, or contradicts itself.
  """
  fields = evident(shapes)
  if missing := [name for name in _TOLD_BY if name not in fields]:
    told = ", ".join(f"{name} (from {_TOLD_BY[name]})" for name in missing)
    raise UserError(
      f"{path}: its parameters are not those of a T5-family model, they leave open: {told}"
    )
  gated = any(name.endswith("mlp/wi_0/kernel") for name in shapes)
  activations = _written_activations(path) or _USUAL_ACTIVATIONS[gated]
  if len(activations) != 1 + gated:
    raise UserError(
      f"{path}: config.gin beside it has mlp_activations={activations}, but its FFNs have "
      f"{1 + gated} input kernels; move a config.gin of another model away"
    )
  try:
    return T5Config(**fields, mlp_activations=activations)  # pyright: ignore[reportArgumentType]
  except ValueError as error:
    raise UserError(f"{path}: {error}") from error


def leave_config(folder: Path, config: T5Config) -> None:
  """Makes sure that `infer_config` will find this config beside a checkpoint that is saved in `folder`.

  Writes config.gin there, which tells the activations, if they are not those of the released models.

  Raises:
    UserError: the layout has no place for a field's value, or the config.gin in `folder` contradicts.
  """
  for name in _FIXED:
    if (value := getattr(config, name)) != (fixed := getattr(T5Config, name)):
      raise UserError(
        f"a T5X checkpoint cannot say {name}={value}: T5X's models have {fixed}; save a Hugging Face folder"
      )
  written = _written_activations(folder / "checkpoint_0")
  if (written or _USUAL_ACTIVATIONS[len(config.mlp_activations) == 2]) == config.mlp_activations:
    return
  file = folder / "config.gin"
  if file.exists():
    raise UserError(
      f"{file} is of another model: its mlp_activations are {written}, not {config.mlp_activations}; "
      "move it away or choose another folder"
    )
  write_bytes(file, f"network.T5Config.mlp_activations = {config.mlp_activations!r}\n".encode())


def _written_activations(path: Path | str) -> tuple[str, ...] | None:
  """`mlp_activations` of the config.gin in the folder above; None where it is not plainly there."""
  content = t5x_format.read_beside(path, "config.gin")
  found = None if content is None else _ACTIVATIONS.search(content.decode(errors="replace"))
  if found is None:
    return None
  try:
    names = ast.literal_eval(found[1])
  except (ValueError, SyntaxError):
    return None
  return tuple(_OURS.get(str(name), str(name)) for name in names)


def evident(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | bool]:
  """Fields of the config that names and shapes of a checkpoint's parameters give away."""

  def first(ending: str) -> tuple[tuple[int, ...], bool]:
    """Shape within one layer of the first such parameter, and whether a layer owns it."""
    for name, shape in sorted(shapes.items()):
      if name.endswith(ending):
        if re.match(r"(\w+)/(\1|layers)/", name):
          return (*shape[:1], *shape[2:]), True
        return shape, "/layers_" in name
    return (), False

  fields: dict[str, int | bool] = {}
  if len(embedding := shapes.get("token_embedder/embedding", ())) == 2:
    fields |= {"vocab_size": embedding[0], "emb_dim": embedding[1]}
    fields["logits_via_embedding"] = "decoder/logits_dense/kernel" not in shapes
  for side in _SIDES:
    layers = {key.split("/")[1] for key in shapes if key.startswith(f"{side}/layers_")}
    stacks = [
      shapes.get(f"{side}/{name}/pre_mlp_layer_norm/scale", ()) for name in (side, "layers")
    ]
    stacked = [shape[1] for shape in stacks if len(shape) == 2]
    if layers or stacked:
      fields[f"num_{side}_layers"] = len(layers) or stacked[0]
  bias, of_layer = first("relpos_bias/rel_embedding")
  if len(bias) == 2:
    fields |= {"num_heads": bias[0], "relpos_num_buckets": bias[1], "per_layer_relpos": of_layer}
  query, _ = first("attention/query/kernel")
  if len(query) == 3:
    fields["head_dim"] = query[2]
  elif len(query) == 2 and len(bias) == 2 and query[1] % bias[0] == 0:
    fields["head_dim"] = query[1] // bias[0]
  output, _ = first("mlp/wo/kernel")
  if len(output) == 2:
    fields["mlp_dim"] = output[0]
  return fields
