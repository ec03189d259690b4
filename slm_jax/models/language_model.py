"""A T5-family model with its weights and tokenizer: what `load_language_model` returns."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slm_jax.models.decoding import GenerationConfig, GenerationResult, generate
from slm_jax.models.row_placement import RowPlacement
from slm_jax.models.t5 import T5, T5Config


class LanguageModel:
  """An encoder-decoder LM ready to run; every call is compiled once per shape.

  Attributes:
    config: shape of the model.
    params: nested dict of arrays, T5X's names.
    tokenizer: `sentencepiece.SentencePieceProcessor`, or None if the folder has none.
  """

  def __init__(
    self, config: T5Config, params: dict, tokenizer: Any = None, mesh: Mesh | None = None
  ):
    """`mesh`: over which `params` lie; `generate` then spreads the rows of host arrays over it."""
    self.config = config
    self.params = params
    self.tokenizer = tokenizer
    self._rows = RowPlacement(mesh)

  @functools.cached_property
  def _variables(self) -> dict:
    if self._rows.mesh is not None:
      return {"params": self.params}
    # Loaded weights are host arrays; the first computation moves them to the device, once.
    return {"params": jax.device_put(self.params)}

  def encode(
    self,
    *,
    tokens: jax.Array | None = None,
    embeddings: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Runs the encoder on tokens int32 [B, S] or on ready embeddings [B, S, D].

    Args:
      mask: bool [B, S], True = real; by default tokens that are not padding. Embeddings need it.

    Returns:
      memory [B, S, D].
    """
    mask = self._mask(tokens, embeddings, mask)
    return _encode(self.config, self._variables, tokens, embeddings, mask)

  def logits(
    self, memory: jax.Array, mask: jax.Array, decoder_input_tokens: jax.Array
  ) -> jax.Array:
    """memory [B, S, D], mask bool [B, S], tokens int32 [B, T] from pad on -> fp32 [B, T, V]."""
    return _logits(self.config, self._variables, memory, mask, decoder_input_tokens)

  def generate(
    self,
    *,
    tokens: jax.Array | None = None,
    embeddings: jax.Array | None = None,
    mask: jax.Array | None = None,
    prefix: jax.Array | np.ndarray | None = None,
    max_lengths: jax.Array | np.ndarray | None = None,
    **options,
  ) -> GenerationResult:
    """Encodes, then decodes.

    Args:
      tokens, embeddings, mask: as in `encode`.
      prefix: int32 [B, P], what the output is made to begin with, as in `decoding.generate`.
      max_lengths: int32 [B], most new tokens of each row, as in `decoding.generate`.
      **options: fields of `GenerationConfig`, e.g. max_new_tokens=64, num_beams=4,
        length_penalty=1.0.

    Returns:
      ids int32 [B, max_new_tokens] (no start token, no prefix, EOS kept, pad after it) and scores
      fp32 [B]; with num_return_sequences=R above 1, [B, R, max_new_tokens] and [B, R], best first.
    """
    config = GenerationConfig(**options)
    mask = self._mask(tokens, embeddings, mask)
    t5, params = T5(self.config), self._variables["params"]
    if self._rows.mesh is None:
      memory = _encode(self.config, self._variables, tokens, embeddings, mask)
      return generate(t5, params, memory, mask, config, prefix=prefix, max_lengths=max_lengths)
    spread = self._rows.spread(mask)
    tokens, embeddings, prefix, max_lengths = (
      None if x is None else self._rows.spread(x) for x in (tokens, embeddings, prefix, max_lengths)
    )
    with self._rows.active():
      memory = _encode(self.config, self._variables, tokens, embeddings, spread)
      found = generate(t5, params, memory, spread, config, prefix=prefix, max_lengths=max_lengths)
    return self._rows.collect(found, len(mask))

  def _mask(self, tokens, embeddings, mask) -> jax.Array:
    if (tokens is None) == (embeddings is None):
      raise ValueError("give exactly one of tokens= and embeddings=")
    if mask is None:
      if tokens is None:
        raise ValueError("embeddings= needs mask=, bool [B, S], True = real")
      return jnp.asarray(tokens) != self.config.pad_id
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
      raise ValueError(f"mask is {mask.dtype}, expected bool with True = real")
    return mask


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, variables, tokens, embeddings, mask):
  t5 = T5(config)
  if tokens is not None:
    embeddings = t5.apply(variables, tokens, method="embed")
  return t5.apply(variables, embeddings, mask, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, variables, memory, mask, decoder_input_tokens):
  t5 = T5(config)
  hidden = t5.apply(variables, memory, mask, decoder_input_tokens, method="decode")
  return t5.apply(variables, hidden, method="logits")
