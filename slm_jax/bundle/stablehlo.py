"""Exports a whole model as StableHLO programs of declared shapes, which run without this package.

The folder: `programs/*.bin` (`jax.export`, its calling convention's version in the manifest), the
weights as safetensors, `spiece.model`, `manifest.json`, and `run.py`, a runner of a page that needs
JAX, safetensors, sentencepiece and soundfile alone. B batch, S samples, P prompt length, T new tokens.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import slm_jax
from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.bundle.atomic_folder import atomic_folder
from slm_jax.interop.safetensors_folder import TOKENIZER_NAME
from slm_jax.interop.safetensors_writer import write_tensors
from slm_jax.models.incremental_decoding import DecodeState, RowOptions, advance, start
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.training import parameters

FORMAT, FORMAT_VERSION = "slm_jax.stablehlo", 1
PLATFORMS = ("cpu", "cuda", "tpu")
_LM = "language_model/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedShapes:
  """What the programs are compiled for.

  Attributes:
    batch_size: B.
    prompt_length: P, tokens of the instruction with EOS.
    max_new_tokens: T.
    tokens_a_call: of one call of the decoder's program.
  """

  batch_size: int = 1
  prompt_length: int = 64
  max_new_tokens: int = 256
  tokens_a_call: int = 8

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")


def export_stablehlo(
  model: SpeechLanguageModel,
  output: Path | str,
  shapes: ExportedShapes,
  *,
  instructions: dict[str, str],
  max_shard_bytes: int | None = None,
  platforms: Sequence[str] = PLATFORMS,
) -> Path:
  """Writes the programs of a loaded model; the folder appears when it is whole.

  Raises:
    UserError: `output` is taken.
  """
  output = Path(output)
  params = parameters.flatten(model.params)
  lm_params = {name: leaf for name, leaf in params.items() if name.startswith(_LM)}
  programs, described = _programs(model, params, lm_params, shapes, platforms)
  with atomic_folder(output) as partial:
    (partial / "programs").mkdir()
    for name, program in programs.items():
      (partial / "programs" / f"{name}.bin").write_bytes(program.serialize())
    tensors: dict[str, Any] = {
      name.replace("/", "."): _Shard(leaf) for name, leaf in params.items()
    }
    write_tensors(partial, tensors, max_shard_bytes=max_shard_bytes)
    (partial / TOKENIZER_NAME).write_bytes(model.tokenizer.serialized_model_proto())
    runner = importlib.resources.files("slm_jax") / "assets" / "stablehlo" / "run.py"
    (partial / "run.py").write_text(runner.read_text("utf-8"), "utf-8")
    lm = model.model.config.language_model
    manifest = {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "slm_jax": slm_jax.__version__,
      "jax": jax.__version__,
      "calling_convention_version": next(iter(programs.values())).calling_convention_version,
      "platforms": list(platforms),
      "sample_rate": SAMPLE_RATE,
      "samples": model.max_samples,
      **dataclasses.asdict(shapes),
      "pad_id": lm.pad_id,
      "eos_id": lm.eos_id,
      "parameters": [name.replace("/", ".") for name in params],
      "language_model_parameters": [name.replace("/", ".") for name in lm_params],
      "programs": described,
      "instructions": instructions,
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
  return output


class _Shard:
  """A device's array, copied to the host when its turn to be written comes."""

  def __init__(self, leaf: jax.Array):
    self._leaf, self.shape, self.dtype = leaf, leaf.shape, np.dtype(leaf.dtype)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self._leaf)


def _programs(
  model: SpeechLanguageModel, params: dict, lm_params: dict, shapes: ExportedShapes, platforms
) -> tuple[dict[str, export.Exported], dict[str, Any]]:
  """(name → program, name → its inputs and outputs); arguments and results are lists of arrays."""
  lm, batch = model.model.config.language_model, shapes.batch_size

  def array(dtype, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)

  def tree(flat: dict, leaves: Sequence[jax.Array]) -> dict:
    return parameters.unflatten(dict(zip(flat, leaves, strict=True)))

  def encode(leaves, audio, lengths, prompt):
    variables = {"params": tree(params, leaves)}
    return list(model.model.apply(variables, audio, lengths, prompt, method="encode"))  # pyright: ignore

  def begin(leaves, memory, mask):
    decoder = tree(lm_params, leaves)["language_model"]
    return jax.tree.leaves(start(lm, shapes.max_new_tokens, decoder, memory, mask))

  def go_on(leaves, state, mask, limits, temperatures, seeds):
    decoder = tree(lm_params, leaves)["language_model"]
    options = RowOptions(limits, temperatures, seeds)
    before: DecodeState = jax.tree.unflatten(structure, state)
    return jax.tree.leaves(advance(lm, shapes.tokens_a_call, decoder, before, mask, options))

  leaves, lm_leaves = ([array(x.dtype, *x.shape) for x in p.values()] for p in (params, lm_params))
  asked = {
    "audio": array(jnp.int16, batch, model.max_samples),
    "lengths": array(jnp.int32, batch),
    "prompt": array(jnp.int32, batch, shapes.prompt_length),
  }
  memory, mask = jax.eval_shape(encode, leaves, *asked.values())
  whole = jax.eval_shape(
    lambda p, *x: start(lm, shapes.max_new_tokens, tree(lm_params, p)["language_model"], *x),
    lm_leaves,
    memory,
    mask,
  )
  state, structure = jax.tree.flatten(whole)
  options = {
    "limits": array(jnp.int32, batch),
    "temperatures": array(jnp.float32, batch),
    "seeds": array(jnp.uint32, batch),
  }
  names = [
    jax.tree_util.keystr(path, simple=True, separator=".")
    for path, _ in jax.tree.leaves_with_path(whole)
  ]
  states = dict(zip(names, state, strict=True))
  signatures: dict[str, tuple[Callable, list, dict, dict]] = {
    "encode": (encode, [leaves, *asked.values()], asked, {"memory": memory, "mask": mask}),
    "start": (begin, [lm_leaves, memory, mask], {"memory": memory, "mask": mask}, states),
    "advance": (
      go_on,
      [lm_leaves, state, mask, *options.values()],
      states | {"mask": mask} | options,
      states,
    ),
  }
  programs, described = {}, {}
  for name, (function, arguments, inputs, outputs) in signatures.items():
    programs[name] = export.export(jax.jit(function), platforms=platforms)(*arguments)
    described[name] = {
      "parameters": "parameters" if name == "encode" else "language_model_parameters",
      "inputs": [_described(n, x) for n, x in inputs.items()],
      "outputs": [_described(n, x) for n, x in outputs.items()],
    }
  return programs, described


def _described(name: str, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
  return {"name": name, "shape": list(x.shape), "dtype": np.dtype(x.dtype).name}
