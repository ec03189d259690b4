"""SLM: speech encoder, adapter and LM as one Flax module with one parameter tree (arXiv:2310.00230, Fig. 1)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.models.adapter import Adapter, AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.quantization import Kernel, multiply_to_float32
from slm_jax.models.row_packing import pack_rows
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoders.families import make_speech_encoder
from slm_jax.models.t5 import T5, T5Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLMConfig:
  """The three parts. `speech_first` puts speech before the instruction (the default order)."""

  speech_encoder: SpeechEncoderConfig
  adapter: AdapterConfig
  language_model: T5Config
  speech_first: bool = True

  @property
  def length_reduction(self) -> LengthReductionConfig:
    """Of the adapter."""
    return self.adapter.length_reduction

  def with_length_reduction(self, reduction: LengthReductionConfig) -> "SLMConfig":
    """The same with another one."""
    adapter = dataclasses.replace(self.adapter, length_reduction=reduction)
    return dataclasses.replace(self, adapter=adapter)


def join_compact(
  first: jax.Array, first_mask: jax.Array, second: jax.Array, second_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Concatenates two left-aligned sequences so that the second follows the first's last real position.

  The LM was trained on text without holes, and its relative positions count padding; closing the gap makes
  speech followed by an instruction look exactly like a sentence followed by an instruction.

  Args:
    first: [B, S, D], real positions first.
    first_mask: bool [B, S], True = real.
    second: [B, P, D], real positions first.
    second_mask: bool [B, P].

  Returns:
    ([B, S + P, D], mask bool [B, S + P]); padding positions hold zeros.
  """
  lengths = first_mask.sum(-1, keepdims=True)  # [B, 1]
  total = first.shape[1] + second.shape[1]
  position = jnp.arange(total)[None]  # [1, S + P]
  source = jnp.where(position < lengths, position, first.shape[1] + position - lengths)
  mask = position < lengths + second_mask.sum(-1, keepdims=True)
  joined = jnp.concatenate([first, second.astype(first.dtype)], axis=1)
  joined = jnp.take_along_axis(joined, jnp.minimum(source, total - 1)[..., None], axis=1)
  return joined * mask[..., None], mask


class SLM(nn.Module):
  """Waveform and instruction in, logits of the target text out."""

  config: SLMConfig

  def setup(self):
    cfg = self.config
    self.speech_encoder = make_speech_encoder(cfg.speech_encoder)
    self.adapter = Adapter(cfg.adapter, output_dim=cfg.language_model.emb_dim)
    self.language_model = T5(cfg.language_model)

  def frozen_frames(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """audio int16 [B, S], lengths [B] -> ([B, T, E], mask bool [B, T]): all that comes before the first trained weight.

    `train` turns on the encoder's SpecAugment; without it the result depends on nothing but audio and frozen weights.
    """
    encoded = self.speech_encoder(audio, lengths, train=train)
    table = self.language_model.token_table() if self.config.adapter.ctc_embeddings else None
    return self.adapter.frozen_part(
      encoded.frames, encoded.mask, encoded.ctc_logits, table, blank_id=encoded.blank_id
    )

  def join_inputs(
    self, frames: jax.Array, mask: jax.Array, prompt: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """What `frozen_frames` returned, prompt int32 [B, P] (pad 0) -> what the LM's encoder reads, and its mask."""
    speech, speech_mask = self.adapter.learned_part(frames, mask, train=train)
    text = self.language_model.embed(prompt)
    parts = (speech, speech_mask), (text, prompt != self.config.language_model.pad_id)
    first, second = parts if self.config.speech_first else parts[::-1]
    return join_compact(*first, *second)

  def embed_inputs(
    self, audio: jax.Array, lengths: jax.Array, prompt: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """audio int16 [B, S], lengths [B], prompt int32 [B, P] (pad 0) -> what the LM's encoder reads, and its mask."""
    return self.join_inputs(*self.frozen_frames(audio, lengths, train=train), prompt, train=train)

  def encode(
    self, audio: jax.Array, lengths: jax.Array, prompt: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Like `embed_inputs`, through the LM's encoder: (memory [B, S', D], mask bool [B, S'])."""
    embeddings, mask = self.embed_inputs(audio, lengths, prompt, train=train)
    return self.encode_joined(embeddings, mask), mask

  def encode_joined(self, embeddings: jax.Array, mask: jax.Array) -> jax.Array:
    """What `join_inputs` returned, through the LM's encoder: memory [B, S', D]."""
    return self.language_model.encode(embeddings, mask)

  def _inputs(self, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array]:
    prompt = batch.encoder_input_tokens
    assert prompt is not None
    if batch.speech_frames is None:
      assert batch.audio is not None and batch.audio_lengths is not None
      return self.embed_inputs(batch.audio, batch.audio_lengths, prompt, train=train)
    frames, lengths = batch.speech_frames, batch.speech_frame_lengths
    assert lengths is not None
    mask = jnp.arange(frames.shape[1])[None] < lengths[:, None]
    return self.join_inputs(frames, mask, prompt, train=train)

  def decode(self, batch: Batch, *, train: bool = False) -> tuple[jax.Array, Kernel]:
    """Teacher-forced ([R, T, D], kernel [D, V]), whose product is the logits of `decoder_targets(batch)`.

    The batch has audio, or `frozen_frames` of it; then the speech encoder has no part in it. `train` turns on the
    adapter's dropout and the encoder's SpecAugment; the frozen LM never drops out.
    """
    tokens, rows, lm = batch.decoder_input_tokens, batch.lm_rows, self.language_model
    assert tokens is not None
    embeddings, mask = self._inputs(batch, train=train)
    if rows is None:
      hidden = lm.decode(lm.encode(embeddings, mask), mask, tokens)
    else:
      embeddings, segments = pack_rows(embeddings, mask, rows.examples, rows.inputs)
      tokens, decoder_segments = pack_rows(tokens, _real(batch), rows.examples, rows.targets)
      mask = segments > 0
      memory = lm.encode(embeddings, mask, segment_ids=segments)
      hidden = lm.decode(
        memory, mask, tokens, segment_ids=segments, decoder_segment_ids=decoder_segments
      )
    return lm.output_projection(hidden)

  def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
    """Teacher-forced logits [R, T, V], fp32; `train` as in `decode`."""
    return multiply_to_float32(*self.decode(batch, train=train))


def decoder_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
  """(target tokens int32 [R, T], their weights fp32 [R, T]) in the rows that the LM has them in.

  R and T are the batch's own without `lm_rows`, else of the rows that examples share.
  """
  targets, weights, rows = batch.decoder_target_tokens, batch.decoder_loss_weights, batch.lm_rows
  assert targets is not None and weights is not None
  if rows is None:
    return targets, weights
  targets, weights = (
    pack_rows(x, _real(batch), rows.examples, rows.targets)[0] for x in (targets, weights)
  )
  return targets, weights


def _real(batch: Batch) -> jax.Array:
  assert batch.decoder_target_tokens is not None
  return batch.decoder_target_tokens != 0
