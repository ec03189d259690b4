"""The T5 family (T5, T5 1.1, mT5, umT5) as one Flax module: tokens or embeddings in, logits out.

Parameter names are T5X's, with the layers of a stack stacked along a leading axis under `layers`.
B batch, S source length, T target length, D model width, N heads, H head width, V vocab, L layers,
K beams, M new tokens of each beam.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import (
  Kernel,
  QuantizedKernel,
  declare,
  multiply_to_float32,
)
from slm_jax.models.relative_position import relative_position_bucket
from slm_jax.models.t5_attention import KeyValue
from slm_jax.models.t5_config import T5Config
from slm_jax.models.t5_layers import DecoderLayer, EncoderLayer, RMSNorm, relpos_bias

_REMAT_POLICY = {
  "full": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class DecodingCache(NamedTuple):
  """What decoding keeps between tokens."""

  # Keys and values of the encoder's output, [L, B, S, N, H]; the beams of a row share them.
  memory: KeyValue
  # Keys and values of the tokens so far, [L, B, K, T, N, H].
  tokens: KeyValue
  # Where a row's first token stands, int32 [B]; what is ahead of it is padding.
  first: jax.Array


def _stack(layer: type[nn.Module], cfg: T5Config, length: int, axes: dict[str, dict]) -> nn.Module:
  """`length` layers as one module; `axes`: in_axes of each method that runs over all of them."""
  if cfg.remat != "none":
    # `train` is the last argument of both layers' __call__; index 0 is the module itself.
    train_index = 1 + len(axes["__call__"]["in_axes"])
    layer = nn.remat(
      layer, prevent_cse=False, static_argnums=(train_index,), policy=_REMAT_POLICY[cfg.remat]
    )
  common = {
    "variable_axes": {"params": 0},
    "split_rngs": {"params": True, "dropout": True},
    "length": length,
    "metadata_params": {nn.PARTITION_NAME: "layers"},
  }
  methods = {name: {**common, **axis} for name, axis in axes.items()}
  return nn.scan(layer, methods=methods)(cfg)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _buckets(cfg: T5Config, query: jax.Array, key: jax.Array, *, bidirectional: bool) -> jax.Array:
  """Positions [T] and [S] -> relative position buckets [T, S]."""
  return relative_position_bucket(
    key[None, :] - query[:, None],
    bidirectional=bidirectional,
    num_buckets=cfg.relpos_num_buckets,
    max_distance=cfg.relpos_max_distance,
  )


class TokenEmbedder(nn.Module):
  """Token embedding [V, D], looked up by gather; int8 rows have a scale each."""

  config: T5Config

  def setup(self):
    shape, axes = (self.config.vocab_size, self.config.emb_dim), ("vocab", "embed")
    if self.config.weights == "float":
      init = nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)
      self.embedding = cast(jax.Array, self.param("embedding", init, shape))
      return
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    ones = nn.with_logical_partitioning(nn.initializers.ones, axes[:1])
    self.embedding = cast(jax.Array, self.param("embedding", zeros, shape, jnp.int8))
    self.embedding_scale = cast(jax.Array, self.param("embedding_scale", ones, shape[:1]))

  @property
  def table(self) -> jax.Array:
    """[V, D], as floats."""
    if self.config.weights == "float":
      return self.embedding
    return self.embedding.astype(jnp.float32) * self.embedding_scale[:, None]

  def as_kernel(self) -> Kernel:
    """The transpose [D, V], for an output that is tied to it."""
    if self.config.weights == "float":
      return self.embedding.T
    return QuantizedKernel(self.embedding.T, self.embedding_scale)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """tokens int32 [...] -> [..., D]; an id outside the vocabulary gives NaN."""
    embeddings = jnp.take(self.embedding, tokens, axis=0)
    if self.config.weights == "int8":
      scale = jnp.take(self.embedding_scale, tokens, axis=0)
      embeddings = embeddings.astype(jnp.float32) * scale[..., None]
    return keep_rows_apart(embeddings.astype(self.config.dtype))


class OutputProjection(nn.Module):
  """The `kernel` [D, V] of an output that is not tied to the embedding."""

  config: T5Config

  def setup(self):
    init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    shape = (self.config.emb_dim, self.config.vocab_size)
    self.kernel = declare(self, "kernel", self.config.weights, init, shape, ("embed", "vocab"))


class Encoder(nn.Module):
  """The encoder's stack and its final norm."""

  config: T5Config

  def setup(self):
    cfg = self.config
    if not cfg.per_layer_relpos:
      self.relpos_bias = relpos_bias(cfg)
    axes = {"__call__": {"in_axes": (nn.broadcast,) * 3}}
    self.layers = _stack(EncoderLayer, cfg, cfg.num_encoder_layers, axes)
    self.encoder_norm = RMSNorm(cfg)
    self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
    """x [B, S, D], mask bool [B, 1, 1, S] or [B, 1, S, S] -> [B, S, D]."""
    positions = jnp.arange(x.shape[1])
    position = _buckets(self.config, positions, positions, bidirectional=True)
    if not self.config.per_layer_relpos:
      position = self.relpos_bias(position)
    x = self.dropout(x, deterministic=not train)
    x, _ = self.layers(x, mask, position, train)
    return self.dropout(self.encoder_norm(x), deterministic=not train)


class Decoder(nn.Module):
  """The decoder's stack, its final norm, and the output projection unless it is tied."""

  config: T5Config

  def setup(self):
    cfg = self.config
    if not cfg.per_layer_relpos:
      self.relpos_bias = relpos_bias(cfg)
    axes = {
      "__call__": {"in_axes": (nn.broadcast,) * 5},
      "project_memory": {"in_axes": (nn.broadcast,)},
      "step": {"in_axes": (0, 0, *(nn.broadcast,) * 4)},
    }
    self.layers = _stack(DecoderLayer, cfg, cfg.num_decoder_layers, axes)
    self.decoder_norm = RMSNorm(cfg)
    self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
    if not cfg.logits_via_embedding:
      self.logits_dense = OutputProjection(cfg)

  def __call__(self, x, memory, mask, same_segment=None, *, train: bool) -> jax.Array:
    """x [B, T, D], memory [B, S, D], mask bool [B, 1, 1, S] or [B, 1, T, S] -> [B, T, D].

    `same_segment`: bool [B, 1, T, T], which tokens belong together; None is all.
    """
    positions = jnp.arange(x.shape[1])
    position = _buckets(self.config, positions, positions, bidirectional=False)
    if not self.config.per_layer_relpos:
      position = self.relpos_bias(position)
    causal_mask = (positions[:, None] >= positions[None, :])[None, None]
    if same_segment is not None:
      causal_mask = causal_mask & same_segment
    x = self.dropout(x, deterministic=not train)
    x, _ = self.layers(x, memory, mask, causal_mask, position, train)
    return self.dropout(self.decoder_norm(x), deterministic=not train)

  def project_memory(self, memory: jax.Array) -> KeyValue:
    """memory [B, S, D] -> every layer's keys and values of it, [L, B, S, N, H]."""
    return self.layers.project_memory(None, memory)[1]

  def step(self, x, cache: DecodingCache, mask, index) -> tuple[jax.Array, DecodingCache]:
    """x [B, K, M, D] from position `index` on, mask bool [B, S] -> ([B, K, M, D], cache)."""
    keys = jnp.arange(cache.tokens.key.shape[3])
    queries = index + jnp.arange(x.shape[2])
    position = _buckets(self.config, queries, keys, bidirectional=False)
    if not self.config.per_layer_relpos:
      position = self.relpos_bias(position)
    causal_mask = (queries[:, None] >= keys) & (keys >= cache.first[:, None, None])  # [B, M, T]
    layers = jnp.arange(self.config.num_decoder_layers)
    mask = mask[:, None, None, :]
    (x, tokens), _ = self.layers.step(
      (x, cache.tokens), layers, cache.memory, mask, causal_mask, position, index
    )
    return self.decoder_norm(x), cache._replace(tokens=tokens)


def _same(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
  """Segment ids [B, T] and [B, S] -> where they are equal, bool [B, 1, T, S]."""
  return query_segments[:, None, :, None] == key_segments[:, None, None, :]


class T5(nn.Module):
  """Encoder-decoder LM. Masks are True at real positions; what stands elsewhere changes nothing.

  Several examples may share a row: with segment ids, attention stays within positions of equal
  ids. T5 knows no positions but distances, so a packed example equals the same example in a row of
  its own as long as its own positions stay in order and without other gaps.
  """

  config: T5Config

  def setup(self):
    self.token_embedder = TokenEmbedder(self.config)
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """tokens int32 [B, T] -> [B, T, D]."""
    return self.token_embedder(tokens)

  def token_table(self) -> jax.Array:
    """The token embedding [V, D]."""
    return self.token_embedder.table

  def encode(
    self,
    embeddings: jax.Array,
    mask: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """embeddings [B, S, D], mask bool [B, S] -> memory [B, S, D]; positions count holes too.

    `segment_ids`: int32 [B, S], which example of its row a position belongs to; None is one.
    """
    # Not only hidden by attention but blanked: padding may hold NaN, and its gradient is 0.
    embeddings = keep_rows_apart(self._real(embeddings, mask))
    keys = mask[:, None, None, :]
    if segment_ids is not None:
      keys = keys & _same(segment_ids, segment_ids)
    return self.encoder(embeddings, keys, train=train)

  def decode(
    self,
    memory: jax.Array,
    mask: jax.Array,
    decoder_input_tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    decoder_segment_ids: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """memory [B, S, D], mask bool [B, S], decoder_input_tokens int32 [B, T] -> hidden [B, T, D].

    Position t sees tokens 0 … t; the first token is `pad_id`, with segments that of each. Segment
    ids, int32 [B, S] of the memory and [B, T] of the tokens, come together or not at all.
    """
    if (segment_ids is None) != (decoder_segment_ids is None):
      raise ValueError("give both segment_ids= and decoder_segment_ids=, or neither")
    x = self.token_embedder(decoder_input_tokens)
    keys, same_segment = mask[:, None, None, :], None
    if segment_ids is not None and decoder_segment_ids is not None:
      keys = keys & _same(decoder_segment_ids, segment_ids)
      same_segment = _same(decoder_segment_ids, decoder_segment_ids)
    memory = keep_rows_apart(self._real(memory, mask))
    return self.decoder(x, memory, keys, same_segment, train=train)

  def output_projection(self, hidden: jax.Array) -> tuple[jax.Array, Kernel]:
    """hidden [..., D] -> ([..., D], kernel [D, V]), whose product is the logits."""
    if self.config.logits_via_embedding:
      return hidden * self.config.emb_dim**-0.5, self.token_embedder.as_kernel()
    return hidden, self.decoder.logits_dense.kernel

  def logits(self, hidden: jax.Array) -> jax.Array:
    """hidden [..., D] -> logits fp32 [..., V], summed in fp32 whatever the compute type."""
    return multiply_to_float32(*self.output_projection(hidden))

  def __call__(
    self, encoder_tokens: jax.Array, mask: jax.Array, decoder_input_tokens: jax.Array
  ) -> jax.Array:
    """encoder_tokens [B, S], mask bool [B, S], decoder_input_tokens [B, T] -> fp32 [B, T, V]."""
    memory = self.encode(self.embed(encoder_tokens), mask)
    return self.logits(self.decode(memory, mask, decoder_input_tokens))

  def init_cache(
    self, memory: jax.Array, mask: jax.Array, first: jax.Array, *, length: int
  ) -> DecodingCache:
    """A cache for `length` tokens of one beam over memory [B, S, D], mask bool [B, S].

    `first`: int32 [B], as in `DecodingCache`. More beams: repeat `tokens` along their axis.
    """
    cfg = self.config
    shape = (cfg.num_decoder_layers, memory.shape[0], 1, length)
    zeros = jnp.zeros((*shape, cfg.num_heads, cfg.head_dim), cfg.dtype)
    projected = self.decoder.project_memory(self._real(memory, mask))
    return DecodingCache(projected, KeyValue(zeros, zeros), first)

  def decode_step(
    self, tokens: jax.Array, index: jax.Array, cache: DecodingCache, mask: jax.Array
  ) -> tuple[jax.Array, DecodingCache]:
    """tokens int32 [B, K, M] from position `index` (int32 []) on -> (fp32 [B, K, V], cache).

    The logits are those after the last of the tokens.
    """
    hidden, cache = self.decoder.step(self.token_embedder(tokens), cache, mask, index)
    return self.logits(hidden[:, :, -1]), cache

  def _real(self, memory: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None], memory, 0).astype(self.config.dtype)


@functools.lru_cache(maxsize=8)
def abstract_params(config: T5Config) -> dict:
  """The parameter tree as shapes, types and logical axes (boxed): no memory is used."""
  tokens, mask = jax.ShapeDtypeStruct((1, 2), jnp.int32), jax.ShapeDtypeStruct((1, 2), jnp.bool_)
  return jax.eval_shape(T5(config).init, jax.random.key(0), tokens, mask, tokens)["params"]  # pyright: ignore
