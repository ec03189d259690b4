"""What a training run optimises: SLM's adapter, a retriever, a speech encoder (by CTC or BEST-RQ), or a text LM.

An objective owns one Flax module and says how a `Batch` becomes a summed loss. The step, the loop, the
checkpoints and the mesh know nothing of the difference.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.models.best_rq import BestRQ
from slm_jax.models.ctc import ctc_loss
from slm_jax.models.retriever import SpeechRetriever
from slm_jax.models.slm import SLM, decoder_targets
from slm_jax.models.speech_encoders.usm import USMEncoder
from slm_jax.models.t5 import T5
from slm_jax.training.character_targets import character_labels
from slm_jax.training.contrastive_loss import own_and_others, sampled_softmax
from slm_jax.training.losses import vocabulary_cross_entropy

# Sums over the batch; "loss" and "weight" are always there and the step reports loss / weight.
Sums = dict[str, jax.Array]


class Objective(Protocol):
  """A module and its loss."""

  def init(self, rng: jax.Array, batch: Batch) -> Any:
    """Fresh parameters, boxed with their logical axis names."""
    ...

  def loss(
    self, params: dict, batch: Batch, rng: jax.Array, *, train: bool = True
  ) -> tuple[jax.Array, Sums]:
    """(summed loss, sums over the batch)."""
    ...


def _rngs(rng: jax.Array) -> dict[str, jax.Array]:
  names = ("dropout", "spec_augment", "length_reduction")
  return dict(zip(names, jax.random.split(rng, len(names)), strict=True))


def _token_sums(
  batch: Batch, hidden: jax.Array, kernel: jax.Array, *, z_loss: float, chunk: int
) -> Sums:
  targets, weights = decoder_targets(batch)
  loss, correct = vocabulary_cross_entropy(
    hidden, kernel, targets, weights, z_loss=z_loss, chunk=chunk
  )
  return {"loss": loss, "correct": correct, "weight": weights.sum()}


def _frames_lost(sown: Mapping[str, Any]) -> Sums:
  """ "frames_lost" of what the model sowed: nothing unless its length reduction packs by CTC."""
  adapter = sown.get("intermediates", {}).get("adapter", {})
  if "length_reduction" not in adapter:
    return {}
  (lost,) = adapter["length_reduction"]["frames_lost"]
  return {"frames_lost": lost.sum().astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class SLMObjective:
  """Token cross-entropy of the target text, through the frozen LM (SLM §3).

  Its sums have "frames_lost", the frames that length reduction by CTC had no room for.
  """

  model: SLM
  # As of `vocabulary_cross_entropy`.
  loss_chunk: int = 0

  def init(self, rng: jax.Array, batch: Batch):
    return self.model.init(rng, jax.tree.map(jnp.asarray, batch))["params"]

  def loss(self, params, batch, rng, *, train=True):
    # Any: the type of what a method returns does not survive `apply`.
    result: Any = self.model.apply(
      {"params": params},
      batch,
      train=train,
      rngs=_rngs(rng),
      method="decode",
      mutable=["intermediates"],
    )
    decoded, sown = result
    sums = _token_sums(batch, *decoded, z_loss=0.0, chunk=self.loss_chunk)
    sums["audio_seconds"] = jnp.sum(batch.audio_lengths) / 16_000.0
    return sums["loss"], sums | _frames_lost(sown)


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective:
  """Text to text, the LM alone."""

  model: T5
  z_loss: float = 1e-4
  # As of `vocabulary_cross_entropy`.
  loss_chunk: int = 0

  def init(self, rng: jax.Array, batch: Batch):
    tokens = jnp.asarray(batch.encoder_input_tokens)
    variables = self.model.init(rng, tokens, tokens != 0, jnp.asarray(batch.decoder_input_tokens))
    return {"language_model": variables["params"]}

  def loss(self, params, batch, rng, *, train=True):
    variables = {"params": params["language_model"]}

    def forward(model: T5):
      mask = batch.encoder_input_tokens != model.config.pad_id
      memory = model.encode(model.embed(batch.encoder_input_tokens), mask, train=train)
      hidden = model.decode(memory, mask, batch.decoder_input_tokens, train=train)
      return model.output_projection(hidden)

    decoded: Any = nn.apply(forward, self.model)(variables, rngs=_rngs(rng))
    sums = _token_sums(batch, *decoded, z_loss=self.z_loss, chunk=self.loss_chunk)
    return sums["loss"], sums


@dataclasses.dataclass(frozen=True)
class SpeechEncoderObjective:
  """CTC over the transcript (USM §2.3), the speech encoder alone; `weight` counts label tokens.

  With `character_table` (see `character_targets`) half of the loss is that of the middle layer's
  head over characters.
  """

  model: USMEncoder
  character_table: np.ndarray | None = None
  eos_id: int = 1

  def init(self, rng: jax.Array, batch: Batch):
    variables = self.model.init(rng, jnp.asarray(batch.audio), jnp.asarray(batch.audio_lengths))
    return {"speech_encoder": variables["params"]}

  def loss(self, params, batch, rng, *, train=True):
    encoded: Any = self.model.apply(
      {"params": params["speech_encoder"]},
      batch.audio,
      batch.audio_lengths,
      train=train,
      rngs=_rngs(rng),
    )
    labels = batch.decoder_target_tokens
    real = (labels != 0) & (labels != self.eos_id)
    losses = ctc_loss(encoded.ctc_logits, encoded.mask, labels, real)
    loss = losses.sum()
    if self.character_table is not None:
      # One more than there are frames, so that a text too long to align is seen to be.
      characters, is_real = character_labels(
        self.character_table, labels, real, encoded.mask.shape[1] + 1
      )
      middle = encoded.intermediate_ctc_logits
      loss = 0.5 * loss + 0.5 * ctc_loss(middle, encoded.mask, characters, is_real).sum()
    sums = {
      "loss": loss,
      "ctc_loss": losses.sum(),
      "weight": real.sum().astype(jnp.float32),
      "audio_seconds": jnp.sum(batch.audio_lengths) / 16_000.0,
    }
    return sums["loss"], sums


@dataclasses.dataclass(frozen=True)
class BestRQObjective:
  """BEST-RQ, the speech encoder without transcripts; `weight` counts hidden frames.

  The loss is the mean over codebooks. "correct" counts codes, as shares of a frame.
  """

  model: BestRQ

  def init(self, rng: jax.Array, batch: Batch):
    rngs = {"params": rng, "best_rq": rng}
    audio, lengths = jnp.asarray(batch.audio), jnp.asarray(batch.audio_lengths)
    params = self.model.init(rngs, audio, lengths)["params"]
    return {"speech_encoder": params["encoder"], "best_rq": {"heads": params["heads"]}}

  def loss(self, params, batch, rng, *, train=True):
    rngs = {**_rngs(rng), "best_rq": jax.random.fold_in(rng, 1)}
    tree = {"encoder": params["speech_encoder"], **params["best_rq"]}
    result: Any = self.model.apply(
      {"params": tree}, batch.audio, batch.audio_lengths, train=train, rngs=rngs
    )
    frames, codes, hidden, heads = result
    weights = hidden.astype(jnp.float32)

    def add(sums, one):
      kernel, targets = one
      return jax.tree.map(
        jnp.add, sums, vocabulary_cross_entropy(frames, kernel, targets, weights)
      ), None

    # One codebook's logits at a time.
    (loss, correct), _ = jax.lax.scan(add, (0.0, 0.0), (heads, jnp.moveaxis(codes, -1, 0)))
    sums = {
      "loss": loss / len(heads),
      "correct": correct / len(heads),
      "weight": weights.sum(),
      "audio_seconds": jnp.sum(batch.audio_lengths) / 16_000.0,
    }
    return sums["loss"], sums


@dataclasses.dataclass(frozen=True)
class RetrieverObjective:
  """In-batch sampled softmax: an utterance's entities against those of the others (ReSLM); `weight` counts
  entities. "correct" counts those that are above all others of the batch.
  """

  model: SpeechRetriever

  def init(self, rng: jax.Array, batch: Batch):
    return self.model.init(rng, jax.tree.map(jnp.asarray, batch))["params"]

  def loss(self, params, batch, rng, *, train=True):
    compared: Any = self.model.apply({"params": params}, batch, train=train, rngs=_rngs(rng))
    logits, texts, real = compared
    own, others = own_and_others(texts, real, len(logits))
    loss, correct, weight = sampled_softmax(logits, own, others)
    sums = {
      "loss": loss,
      "correct": correct,
      "weight": weight,
      "audio_seconds": jnp.sum(batch.audio_lengths) / 16_000.0,
    }
    return loss, sums
