"""Which entities of a list a recording names: a trained retriever, ready to be asked.

The list is embedded once; a recording is then compared with all of it by one matrix product. Memory does
not grow with the list but for its vectors.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from slm_jax.audio.files import split_audio
from slm_jax.entities import encode_entities
from slm_jax.errors import UserError
from slm_jax.evaluation.generation import audio_batch
from slm_jax.models.retriever import SpeechRetriever, soft_maximum
from slm_jax.training.objectives import RetrieverObjective
from slm_jax.training.recipes import RetrieverRecipe
from slm_jax.training.restore import PREFIX, checkpoint_folder, place_parameters, restore_trained

# Entities that are compared with a batch at a time.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class EntityIndex:
  """An embedded list.

  Attributes:
    entities: distinct, in the order in which they were given.
    vectors: fp32 [blocks, entities of a block, E]; those past the last entity's are of no meaning.
  """

  entities: tuple[str, ...]
  vectors: jax.Array


class EntityRetriever:
  """A retriever with its weights; calls are jitted, one compilation per shape of an index and per k."""

  def __init__(
    self, model: SpeechRetriever, params: dict, *, max_samples: int, batch_size: int = 16
  ):
    """`max_samples`: longest audio of one call; longer recordings are cut at pauses."""
    if batch_size < 1:
      raise ValueError(f"batch_size={batch_size}: expected at least 1")
    self._model, self._params = model, params
    self._max_samples, self._batch_size = max_samples, batch_size
    self._embed = jax.jit(
      lambda params, texts: model.apply({"params": params}, texts, method="embed_entities")
    )
    self._listen = jax.jit(
      lambda params, *audio: model.apply({"params": params}, *audio, method="embed_speech")
    )
    self._scale = model.apply({"params": params}, method="scale")

  def index(self, entities: Sequence[str]) -> EntityIndex:
    """Embeds a list.

    Raises:
      UserError: a list of nothing, or an entity that is empty, too long, or holds the separator.
    """
    distinct = tuple(dict.fromkeys(entities))
    if not distinct:
      raise UserError("no entity to look for; give a list of at least one")
    texts = encode_entities(distinct, self._model.config.retriever.max_entity_bytes)
    # Few shapes to compile, and a short list does not cost what a long one would.
    block = min(_BLOCK, 1 << (len(texts) - 1).bit_length())
    texts = np.pad(texts, ((0, -len(texts) % block), (0, 0)))
    parts = texts.reshape(-1, block, texts.shape[1])
    return EntityIndex(distinct, jnp.stack([self._embed(self._params, part) for part in parts]))

  def retrieve(
    self, recordings: Sequence[np.ndarray], index: EntityIndex, k: int = 10
  ) -> list[list[tuple[str, float]]]:
    """The k entities most similar to each recording, best first, with their similarities.

    Args:
      recordings: int16 [S] at 16 kHz each; of a long one the best similarity of its pieces counts.
      index: of this retriever.
      k: how many; all, where the index has fewer.

    Raises:
      ValueError: k below 1, or a recording without samples.
    """
    if k < 1:
      raise ValueError(f"k={k}: expected at least 1")
    k, found = min(k, len(index.entities)), [dict[int, float]() for _ in recordings]
    pieces = []
    for i, samples in enumerate(recordings):
      ranges = split_audio(samples, self._max_samples)
      if not ranges:
        raise ValueError(f"recording {i} has no samples")
      pieces += [(i, samples[start:stop]) for start, stop in ranges]
    for begin in range(0, len(pieces), self._batch_size):
      batch = pieces[begin : begin + self._batch_size]
      rows = [samples for _, samples in batch]
      rows += rows[:1] * (self._batch_size - len(rows))
      speech, mask = self._listen(self._params, *audio_batch(rows, self._max_samples))
      count = len(index.entities)
      best = _search(self._scale, speech, mask, index.vectors, count, k=k)
      for (i, _), scores, ids in zip(batch, *map(np.asarray, best), strict=False):
        for place, score in zip(ids.tolist(), scores.tolist(), strict=True):
          found[i][place] = max(score, found[i].get(place, score))
    return [
      [(index.entities[i], scores[i]) for i in sorted(scores, key=lambda i: (-scores[i], i))[:k]]
      for scores in found
    ]


@functools.partial(jax.jit, static_argnames="k")
def _search(scale, speech, mask, vectors, count, *, k: int) -> tuple[jax.Array, jax.Array]:
  """(similarities fp32 [B, k], int32 [B, k] places in the list), best first, earlier ones first of equals."""

  def add(best, numbered):
    number, block = numbered
    places = number * len(block) + jnp.arange(len(block))
    scores = soft_maximum(speech, mask, block, scale)
    scores = jnp.where(places < count, scores, -jnp.inf)
    places = jnp.broadcast_to(places, scores.shape)
    scores, places = (jnp.concatenate(x, axis=1) for x in zip(best, (scores, places), strict=True))
    top, at = jax.lax.top_k(scores, k)
    return (top, jnp.take_along_axis(places, at, axis=1)), None

  rows = len(speech)
  start = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
  return jax.lax.scan(add, start, (jnp.arange(len(vectors)), vectors))[0]


def load_retriever(
  recipe: RetrieverRecipe,
  model_dir: str | epath.PathLike,
  *,
  step: int | str | None = None,
  max_samples: int,
  batch_size: int = 16,
) -> tuple[EntityRetriever, int]:
  """A training run's retriever, and the step it was saved at.

  Raises:
    UserError: no such checkpoint, another speech encoder than it was trained on, or another shape.
  """
  built, checkpoint = recipe.build(), checkpoint_folder(model_dir, step)
  assert isinstance(built.objective, RetrieverObjective)
  params = place_parameters(built, restore_trained(checkpoint), checkpoint)
  retriever = EntityRetriever(
    built.objective.model,
    params,
    max_samples=min(max_samples, built.max_samples or max_samples),
    batch_size=batch_size,
  )
  return retriever, int(checkpoint.name.removeprefix(PREFIX))
