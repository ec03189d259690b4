"""Dual-encoder speech retriever: which entities of a list are named in an utterance (ReSLM, arXiv:2402.01828).

A speech tower over the frames of the frozen encoder gives a vector at every position, a text tower over an
entity's bytes gives one vector. An entity is named somewhere in a sentence, so its similarity is the soft
maximum over positions (late interaction, arXiv:2004.12832), not that with a pooled sentence:

  similarity(u, e) = 1/s * log sum_t exp(s * cos(u_t, e)),   s learned

B utterances, T positions, E width of the vectors, M entities, C bytes of an entity.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.entities import FIRST_BYTE_ID, SEPARATOR_ID, VOCAB_SIZE
from slm_jax.models.adapter import Adapter, AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoders.families import make_speech_encoder

_INITIAL_SCALE = 1 / 0.07  # arXiv:2103.00020 §2.5
_MAX_SCALE = 100.0  # likewise


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverConfig:
  """Shape of both towers.

  Attributes:
    towers: layers of each; its length reduction is the speech tower's.
    width: of the layers.
    embedding_dim: E.
    max_entities: of an utterance in training; further ones are left out.
    max_entity_bytes: C; in training a longer one is left out.
  """

  towers: AdapterConfig
  width: int
  embedding_dim: int
  max_entities: int = 4
  max_entity_bytes: int = 32

  def __post_init__(self):
    for name in ("width", "embedding_dim", "max_entities", "max_entity_bytes"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    if self.towers.ctc_embeddings:
      raise ValueError("towers: AdapterConfig.ctc_embeddings=True needs an LM; set it to False")


def split_entities(tokens: jax.Array, count: int, length: int) -> tuple[jax.Array, jax.Array]:
  """Takes rows of separated entities apart.

  Args:
    tokens: int32 [B, L], entities with `SEPARATOR` between them, then 1 or 0.
    count: N; further entities of a row are left out.
    length: C; longer entities are left out.

  Returns:
    (int32 [B, N, C], 0 past the end of each entity; bool [B, N], True where there is one).
  """
  separator = tokens == SEPARATOR_ID
  is_byte = (tokens >= FIRST_BYTE_ID) & ~separator
  entity = jnp.cumsum(separator, axis=1)  # [B, L], which one a position belongs to
  here = jnp.arange(tokens.shape[1])[None]
  begin = jax.lax.cummax(jnp.where(separator, here + 1, 0), axis=1)
  row = jnp.arange(tokens.shape[0])[:, None]
  # What has no place is put past the end, where it is dropped.
  at = (row, jnp.where(is_byte, entity, count))
  sizes = jnp.zeros((tokens.shape[0], count), jnp.int32).at[at].add(1, mode="drop")
  real = (sizes > 0) & (sizes <= length)
  texts = jnp.zeros((tokens.shape[0], count, length), jnp.int32)
  texts = texts.at[*at, here - begin].set(tokens, mode="drop")
  return jnp.where(real[..., None], texts, 0), real


def soft_maximum(
  speech: jax.Array, mask: jax.Array, entities: jax.Array, scale: jax.Array
) -> jax.Array:
  """Similarity of utterances and entities, above; fp32.

  Args:
    speech: [B, T, E], of length 1.
    mask: bool [B, T], True = real.
    entities: [M, E], of length 1.
    scale: s, [] or [1].

  Returns:
    [B, M]; -2, less than any, for an utterance without a position.
  """
  cosines = jnp.einsum("BTE,ME->BTM", speech, entities, preferred_element_type=jnp.float32)
  # Finite, so that an utterance without a position has a gradient: none.
  logits = jnp.where(mask[..., None], scale * cosines, -1e9)
  return jnp.maximum(jax.nn.logsumexp(logits, axis=1) / scale, -2.0)


def _unit(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def _out(features: int, dtype: str) -> nn.Dense:
  init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
  init = nn.with_logical_partitioning(init, ("embed", "mlp"))
  return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init)


class _Scale(nn.Module):
  """The learned s, [1]. A module of its own: `frozen_frames` runs without the trained parameters."""

  @nn.compact
  def __call__(self) -> jax.Array:
    init = nn.initializers.constant(math.log(_INITIAL_SCALE))
    log: Any = self.param("log", nn.with_logical_partitioning(init, (None,)), (1,))
    return jnp.minimum(jnp.exp(log), _MAX_SCALE)


class Retriever(nn.Module):
  """The two trained towers, and `scale()`, the learned s."""

  config: RetrieverConfig

  def setup(self):
    cfg = self.config
    whole = LengthReductionConfig(kind="drop", factor=1)
    self.speech_tower = Adapter(cfg.towers, output_dim=cfg.width)
    self.text_tower = Adapter(
      dataclasses.replace(cfg.towers, length_reduction=whole), output_dim=cfg.width
    )
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
    self.byte_embedding = nn.Embed(VOCAB_SIZE, cfg.width, embedding_init=init)
    self.speech_out = _out(cfg.embedding_dim, cfg.towers.dtype)
    self.text_out = _out(cfg.embedding_dim, cfg.towers.dtype)
    self.scale = _Scale()

  def embed_speech(
    self, frames: jax.Array, mask: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """What the speech tower's `frozen_part` returned -> (fp32 [B, T, E] of length 1, mask bool [B, T])."""
    x, mask = self.speech_tower.learned_part(frames, mask, train=train)
    return _unit(self.speech_out(x)), mask

  def embed_entities(self, texts: jax.Array, *, train: bool = False) -> jax.Array:
    """int32 [M, C], 0 past the end -> fp32 [M, E] of length 1, but for texts of nothing."""
    x, mask = self.text_tower(self.byte_embedding(texts), texts != 0, train=train)
    mean = x.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return _unit(self.text_out(mean))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRetrieverConfig:
  """The two parts."""

  speech_encoder: SpeechEncoderConfig
  retriever: RetrieverConfig

  @property
  def length_reduction(self) -> LengthReductionConfig:
    """Of the speech tower."""
    return self.retriever.towers.length_reduction

  def with_length_reduction(self, reduction: LengthReductionConfig) -> "SpeechRetrieverConfig":
    """The same with another one."""
    towers = dataclasses.replace(self.retriever.towers, length_reduction=reduction)
    return dataclasses.replace(self, retriever=dataclasses.replace(self.retriever, towers=towers))


class SpeechRetriever(nn.Module):
  """Frozen speech encoder and retriever, one parameter tree."""

  config: SpeechRetrieverConfig

  def setup(self):
    self.speech_encoder = make_speech_encoder(self.config.speech_encoder)
    self.retriever = Retriever(self.config.retriever)

  def frozen_frames(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """audio int16 [B, S], lengths [B] in samples -> ([B, T, D], mask bool [B, T]): all that comes before the
    first trained weight. `train` turns on the encoder's SpecAugment."""
    encoded = self.speech_encoder(audio, lengths, train=train)
    return self.retriever.speech_tower.frozen_part(
      encoded.frames, encoded.mask, encoded.ctc_logits, blank_id=encoded.blank_id
    )

  def embed_speech(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `frozen_frames` -> as of `Retriever`."""
    return self.retriever.embed_speech(*self.frozen_frames(audio, lengths))

  def embed_entities(self, texts: jax.Array) -> jax.Array:
    """As of `Retriever`."""
    return self.retriever.embed_entities(texts)

  def scale(self) -> jax.Array:
    """As of `Retriever`."""
    return self.retriever.scale()

  def _frames(self, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array]:
    if batch.speech_frames is None:
      assert batch.audio is not None and batch.audio_lengths is not None
      return self.frozen_frames(batch.audio, batch.audio_lengths, train=train)
    frames, lengths = batch.speech_frames, batch.speech_frame_lengths
    assert lengths is not None
    return frames, jnp.arange(frames.shape[1])[None] < lengths[:, None]

  def __call__(
    self, batch: Batch, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a batch whose targets are entities: (logits fp32 [B, M], texts int32 [M, C], real bool [M]).

    M = B * `max_entities`: every utterance is compared with every place for an entity in the batch; row
    b's own are the b-th `max_entities` of them. The batch has audio, or `frozen_frames` of it.
    """
    cfg, tokens = self.config.retriever, batch.decoder_target_tokens
    assert tokens is not None
    texts, real = split_entities(tokens, cfg.max_entities, cfg.max_entity_bytes)
    texts, real = texts.reshape(-1, cfg.max_entity_bytes), real.reshape(-1)
    frames, mask = self._frames(batch, train=train)
    speech, mask = self.retriever.embed_speech(frames, mask, train=train)
    entities = self.retriever.embed_entities(texts, train=train)
    scale = self.retriever.scale()
    return scale * soft_maximum(speech, mask, entities, scale), texts, real
