"""A run's real programs, traced for devices that need not be there."""

import functools
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.launch.abstract_run import AbstractRun
from slm_jax.models.decoding import lower_generate
from slm_jax.models.generation_config import GenerationConfig
from slm_jax.models.slm import SLM
from slm_jax.training import parameters
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.step import make_train_step


def lower_train_step(run: AbstractRun, num_microbatches: int):
  """The train step, with the state donated and left where it was, as the train loop compiles it."""
  step = make_train_step(run.built.objective, run.optimizer, num_microbatches)
  shardings = jax.tree.map(lambda x: x.sharding, run.state)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
  with jax.set_mesh(run.mesh):
    return jitted.lower(run.state, run.frozen, run.batch)


def _model(run: AbstractRun) -> SLM:
  assert isinstance(run.built.objective, SLMObjective)
  return run.built.objective.model


def lower_encode(run: AbstractRun):
  """Audio and instruction to what the LM's decoder reads, as evaluation does it for a batch."""
  model, batch = _model(run), run.batch

  def encode(params, audio, lengths, prompt) -> Any:
    return model.apply({"params": params}, audio, lengths, prompt, method="encode")

  arguments = (run.params, batch.audio, batch.audio_lengths, batch.encoder_input_tokens)
  rows = NamedSharding(run.mesh, PartitionSpec(("data", "fsdp")))
  with jax.set_mesh(run.mesh):
    return jax.jit(encode, out_shardings=(rows, rows)).lower(*arguments)


def lower_decode(run: AbstractRun, *, num_beams: int, max_new_tokens: int):
  """Beam or greedy search from an encoded batch to token ids."""
  model, batch = _model(run), run.batch
  encode = functools.partial(model.apply, method="encode")
  memory, mask = jax.eval_shape(
    encode,
    {"params": run.params},
    batch.audio,
    batch.audio_lengths,
    batch.encoder_input_tokens,
  )
  rows = NamedSharding(run.mesh, PartitionSpec(("data", "fsdp")))
  memory, mask = (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in (memory, mask))
  config = GenerationConfig(max_new_tokens=max_new_tokens, num_beams=num_beams)
  with jax.set_mesh(run.mesh):
    return lower_generate(
      model.config.language_model, run.params["language_model"], memory, mask, config
    )


def matrix_parameters(run: AbstractRun) -> dict[str, int]:
  """Weights that meet every frame or token of their part in a product, by what they meet.

  "speech_encoder" meets frames of the encoder, "adapter" frames after length reduction, "encoder"
  the LM's source positions, "memory" (keys and values of cross-attention) too, "decoder" target
  positions, "head" too. Lookups, norms and biases are not counted.
  """
  found: dict[str, int] = dict.fromkeys(
    ("speech_encoder", "adapter", "encoder", "memory", "decoder", "head"), 0
  )
  for path, leaf in parameters.flatten(run.params).items():
    if not path.endswith("kernel"):
      continue
    size = math.prod(leaf.shape)
    if not path.startswith("language_model/"):
      found[path.split("/")[0]] += size
    elif "logits_dense" in path:
      found["head"] += size
    elif path.startswith("language_model/encoder/"):
      found["encoder"] += size
    elif "encoder_decoder_attention/key" in path or "encoder_decoder_attention/value" in path:
      found["memory"] += size
    else:
      found["decoder"] += size
  lm = _model(run).config.language_model
  if lm.logits_via_embedding:
    found["head"] = lm.vocab_size * lm.emb_dim
  return found


def positions(run: AbstractRun) -> dict[str, int]:
  """Positions of a whole batch that each part of `matrix_parameters` meets, padding included."""
  config, batch = _model(run).config, run.batch
  reduction = config.adapter.length_reduction
  if batch.audio is None:  # the frames come from a cache
    rows, reduced = batch.speech_frames.shape[:2]  # pyright: ignore[reportOptionalMemberAccess]
    frames, reduced = 0, reduced if reduction.is_fixed else reduction.output_length(reduced)
  else:
    rows, samples = batch.audio.shape
    frames = config.speech_encoder.num_frames(samples)
    reduced = reduction.output_length(frames)
  if (shared := batch.lm_rows) is None:
    source = rows * (reduced + batch.encoder_input_tokens.shape[1])  # pyright: ignore
    target = rows * batch.decoder_input_tokens.shape[1]  # pyright: ignore
  else:
    source, target = (rows // shared.examples * n for n in (shared.inputs, shared.targets))
  return {
    "speech_encoder": rows * frames,
    "adapter": rows * reduced,
    "encoder": source,
    "memory": source,
    "decoder": target,
    "head": target,
  }


def share_bytes(tree: Any, *, on_host: bool = False) -> int:
  """Bytes of a tree that lie on one device, without the padding that a device's layout adds.

  `on_host`: instead those that its host keeps for it.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if (leaf.sharding.memory_kind == "pinned_host") == on_host
  )
