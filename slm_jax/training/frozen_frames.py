"""The part of SLM, or of a retriever, before its first trained weight, run on its own: what a frame cache keeps."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.interop.placement import place_all
from slm_jax.models.length_reduction import CTC_KINDS
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.retriever import SpeechRetriever
from slm_jax.models.slm import SLM
from slm_jax.training import parameters
from slm_jax.training.objectives import RetrieverObjective, SLMObjective
from slm_jax.training.recipes import AdapterRecipe, Built, RetrieverRecipe
from slm_jax.training.sharding import BATCH_SPEC, batch_shards, shard_batch

# Of the layout of stores and of what `facts` says.
FORMAT = 1
FramesRecipe = AdapterRecipe | RetrieverRecipe
FramesModel = SLM | SpeechRetriever
ENCODER, TOKEN_TABLE = "speech_encoder/", "language_model/token_embedder/"


def check_cacheable(recipe: Any) -> None:
  """Raises UserError unless the frames of this recipe are the same at every step of a run."""
  if not isinstance(recipe, AdapterRecipe | RetrieverRecipe):
    raise UserError(
      f"train.frame_cache: {type(recipe).__name__} trains what the frames come from; only AdapterRecipe "
      "and RetrieverRecipe can be trained from cached frames, set it to None"
    )
  if recipe.spec_augment is not None:
    raise UserError(
      f"train.frame_cache and {type(recipe).__name__}.spec_augment: cached frames were heard once and cannot be "
      "masked anew; set one of them to None"
    )


class FrozenFrames:
  """A speech encoder on a mesh, with the length reduction where that has no weights.

  Attributes:
    facts: everything that the frames of an utterance depend on, JSON-ready, but for its audio.
    key: a hash of `facts`.
    encoder_fingerprint: of the encoder's weights.
    width: E of the frames.
    dtype: of the frames.
  """

  def __init__(self, recipe: FramesRecipe, built: Built, mesh: Mesh):
    """Reads the weights of the encoder, and the LM's token table where the adapter starts from it.

    Raises:
      UserError: the recipe trains some of it, or the weights do not fit.
    """
    check_cacheable(recipe)
    assert isinstance(built.objective, SLMObjective | RetrieverObjective)
    self._model, self._mesh = _whole_reduction(built.objective.model), mesh
    reads_table = isinstance(recipe, AdapterRecipe) and recipe.adapter.ctc_embeddings
    parts = (ENCODER, TOKEN_TABLE) if reads_table else (ENCODER,)
    boxed = jax.eval_shape(built.objective.init, jax.random.key(0), _one_second())
    shardings = parameters.flatten(parameter_shardings(boxed, mesh))
    wanted = {path for path in shardings if path.startswith(parts)}
    if trained := [path for path in sorted(wanted) if _matches(built.trainable, path, shardings)]:
      raise UserError(
        f"train.frame_cache: {type(recipe).__name__}.trainable={built.trainable!r} trains {trained[0]}, which the "
        "cached frames depend on; set train.frame_cache to None"
      )
    loaded = parameters.flatten(built.loaded)
    if missing := sorted(wanted - set(loaded)):
      raise UserError(f"{recipe.speech_encoder}: has no {missing[0]}; frames need trained weights")
    self._params = parameters.unflatten(place_all({p: loaded[p] for p in wanted}, shardings))
    prints = {part: parameters.fingerprint({part: tree}) for part, tree in self._params.items()}
    self.encoder_fingerprint = prints["speech_encoder"]
    self.facts = _facts(self._model, prints)
    text = json.dumps(self.facts, sort_keys=True)
    self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
    self._apply = jax.jit(
      lambda params, audio, lengths: self._model.apply(
        {"params": params}, audio, lengths, method="frozen_frames"
      )
    )
    row = _one_second()
    shape = jax.eval_shape(self._apply, self._params, row.audio, row.audio_lengths)[0]
    self.width, self.dtype = shape.shape[-1], np.dtype(shape.dtype)

  def __call__(self, audio: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Frames [T, E] of each row of int16 [B, S], lengths [B] in samples; all rows are this process's.

    B is a multiple of the mesh's parts of a batch.
    """
    rows = NamedSharding(self._mesh, BATCH_SPEC)
    with jax.set_mesh(self._mesh):
      frames, mask = self._apply(self._params, *(jax.device_put(x, rows) for x in (audio, lengths)))
    frames, counts = np.asarray(frames), np.asarray(mask.sum(axis=1))
    return [row[:count] for row, count in zip(frames, counts, strict=True)]

  def witness(self) -> np.ndarray:
    """Frames of a fixed sound, [T, E] in fp32."""
    batch = batch_shards(self._mesh)
    sound = _witness_sound()
    audio, lengths = np.stack([sound] * batch), np.full(batch, len(sound), np.int32)
    # Every process has its rows of it, and gets the whole.
    audio, lengths = shard_batch((audio, lengths), self._mesh, batch)
    everywhere = NamedSharding(self._mesh, PartitionSpec())

    def first(params, audio, lengths):
      frames, mask = self._apply(params, audio, lengths)
      return jnp.where(mask[0, :, None], frames[0], 0).astype(jnp.float32)

    with jax.set_mesh(self._mesh):
      compiled = jax.jit(first, out_shardings=everywhere)
      return np.asarray(compiled(self._params, audio, lengths))


def frame_count(model: FramesModel, num_samples: int) -> int:
  """T of `frozen_frames` of [B, num_samples]."""
  frames = model.config.speech_encoder.num_frames(num_samples)
  reduction = model.config.length_reduction
  return reduction.output_length(frames) if reduction.is_fixed else frames


def _whole_reduction(model: FramesModel) -> FramesModel:
  """The model with room for every frame that length reduction may keep: a batch's shape cuts it later."""
  config = model.config
  whole = dataclasses.replace(config.length_reduction, max_frames=1.0)
  return type(model)(config.with_length_reduction(whole))  # pyright: ignore[reportArgumentType]


def _facts(model: FramesModel, fingerprints: dict[str, str]) -> dict[str, Any]:
  reduction = model.config.length_reduction
  kept: dict[str, Any] = {"kind": reduction.kind}
  if reduction.kind not in CTC_KINDS:
    kept["factor"] = reduction.factor
  encoder = model.config.speech_encoder
  return {
    "format": FORMAT,
    "speech_encoder": fingerprints["speech_encoder"],
    "speech_encoder_config": {
      "kind": type(encoder).__name__,
      **_plain(dataclasses.asdict(encoder)),
    },
    "length_reduction": kept if reduction.is_fixed else None,
    "token_table": fingerprints.get("language_model"),
  }


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {str(name): _plain(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _matches(trainable: str, path: str, all_paths: Any) -> bool:
  return path in parameters.flatten(parameters.split(dict.fromkeys(all_paths), trainable)[0])


def _one_second() -> Batch:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    Batch.fake(batch_size=1, num_samples=16_000, prompt_length=2, target_length=2, vocab_size=8),
  )


def _witness_sound() -> np.ndarray:
  """One second of a rising tone with its octaves in a little noise, int16."""
  time = np.arange(16_000) / 16_000
  phase = 2 * np.pi * (120 * time + 200 * time**2)
  tone = sum(np.sin(octave * phase) / octave for octave in (1, 2, 4, 8))
  noise = np.random.default_rng(0).normal(size=len(time))
  return ((tone + 0.05 * noise) * 4000).astype(np.int16)
