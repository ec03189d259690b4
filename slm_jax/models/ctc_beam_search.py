"""CTC prefix beam search: the most probable texts, each summed over its alignments.

Hannun et al., arXiv:1408.2873, algorithm 1, without a language model. B batch, T frames, V classes,
K prefixes of the beam, C classes tried in a frame.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slm_jax.models.ctc import pack_left

# Log-probability of a place in the beam that holds no prefix: far below any sum, yet finite.
_NONE = -1e30
# Least log-probability of a class in a frame, so that a sum over frames stays above `_NONE`.
_LEAST = -1e9
# Two odd multipliers make a hash of 64 bits.
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B)


class CtcBeams(NamedTuple):
  """The texts that a search found, most probable first.

  Attributes:
    ids: int32 [B, K, T], left-packed, padded with 0.
    lengths: int32 [B, K].
    log_probs: fp32 [B, K], of the whole text, in nats; -inf where fewer than K texts are possible.
  """

  ids: jax.Array
  lengths: jax.Array
  log_probs: jax.Array


class _Beam(NamedTuple):
  """K different prefixes; a place without one has both log-probabilities near `_NONE`."""

  blank: jax.Array  # [K], log-probability of alignments that end in a blank
  label: jax.Array  # [K], of those that end in the prefix's last label
  last: jax.Array  # int32 [K], that label; -1 of the empty prefix
  hashes: jax.Array  # uint32 [K, 2], of the prefix


@functools.partial(jax.jit, static_argnames=("num_beams", "top_classes", "blank_id"))
def ctc_beam_search(
  logits: jax.Array,
  mask: jax.Array,
  *,
  num_beams: int = 8,
  top_classes: int = 16,
  blank_id: int = 0,
) -> CtcBeams:
  """Searches each example's K most probable texts.

  A text's probability is summed over the alignments that the beam kept: exact where nothing was
  pruned, below the truth otherwise. Prefixes are told apart by hashes of 64 bits.

  Args:
    logits: [B, T, V], not normalised.
    mask: bool [B, T], True = real.
    num_beams: K, prefixes kept after each frame.
    top_classes: C, most probable classes that may be appended in a frame; the blank and the
      repetition of a prefix's last class are always considered.
    blank_id: class of the blank.
  """
  num_classes = logits.shape[-1]
  if num_beams < 1 or top_classes < 1 or num_classes < 2:
    raise ValueError(
      f"num_beams={num_beams}, top_classes={top_classes}, {num_classes} classes: expected at least "
      "1, 1 and 2"
    )
  log_probs = jnp.maximum(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), _LEAST)
  without_blank = log_probs.at[..., blank_id].set(-jnp.inf)
  top, classes = jax.lax.top_k(without_blank, min(top_classes, num_classes - 1))

  def search(log_probs, top, classes, mask):
    frames = (log_probs, log_probs[:, blank_id], top, classes.astype(jnp.int32), mask)
    return _search(frames, num_beams)

  appended, totals = jax.vmap(search)(log_probs, top, classes, mask)
  batch, num_frames = mask.shape
  rows = appended.reshape(batch * num_beams, num_frames)
  ids, kept = pack_left(rows, rows >= 0, num_frames)
  return CtcBeams(
    ids=ids.reshape(batch, num_beams, num_frames),
    lengths=kept.sum(axis=1).astype(jnp.int32).reshape(batch, num_beams),
    log_probs=jnp.where(totals > _NONE / 2, totals, -jnp.inf),
  )


def _search(frames: tuple[jax.Array, ...], num_beams: int) -> tuple[jax.Array, jax.Array]:
  """One example: what each frame appends to each result, int32 [K, T], -1 if nothing; totals [K]."""
  nothing = jnp.full(num_beams, _NONE)
  start = _Beam(
    blank=nothing.at[0].set(0.0),
    label=nothing,
    last=jnp.full(num_beams, -1, jnp.int32),
    hashes=jnp.ones((num_beams, 2), jnp.uint32),
  )
  beam, (sources, labels) = jax.lax.scan(_advance, start, frames)
  totals, order = jax.lax.top_k(jnp.logaddexp(beam.blank, beam.label), num_beams)

  def back(place, frame):
    source, label = frame
    return source[place], label[place]

  # Last frame first: which place of the frame before did each prefix come from?
  _, appended = jax.lax.scan(back, order, (sources, labels), reverse=True)
  appended = jnp.where(totals[:, None] > _NONE / 2, appended.T, -1)
  return appended, totals


def _advance(beam: _Beam, frame: tuple[jax.Array, ...]) -> tuple[_Beam, tuple]:
  """One frame: (log-probabilities [V], of the blank [], of the top classes [C], those [C], real []).

  Returns:
    The new beam, and for each of its places the old one it came from and the label appended or -1.
  """
  log_probs, blank, top, classes, real = frame
  num_beams = beam.last.shape[0]
  total = jnp.logaddexp(beam.blank, beam.label)
  # Prefixes that stay as they are.
  stay_blank = total + blank
  stay_label = beam.label + log_probs[beam.last]
  # Prefixes that grow; the same label again needs a blank between.
  grown = jnp.where(beam.last[:, None] == classes, beam.blank[:, None], total[:, None]) + top
  hashes = _extended(beam.hashes, classes)  # [K, C, 2]
  # One that grows into another prefix of the beam adds to that one.
  alive = total > _NONE / 2
  same = (hashes[:, :, None] == beam.hashes).all(axis=-1) & alive  # [K, C, K]
  merged = jnp.where(same, grown[..., None], _NONE).max(axis=(0, 1))
  stay_label = jnp.logaddexp(stay_label, merged)
  grown = jnp.where(same.any(axis=-1) | ~alive[:, None], _NONE, grown)

  scores = jnp.concatenate([jnp.logaddexp(stay_blank, stay_label), grown.reshape(-1)])
  _, chosen = jax.lax.top_k(scores, num_beams)
  stays = chosen < num_beams
  pair = jnp.maximum(chosen - num_beams, 0)
  source = jnp.where(stays, chosen, pair // classes.size)
  label = jnp.where(stays, -1, classes[pair % classes.size])
  new = _Beam(
    blank=jnp.where(stays, stay_blank[source], _NONE),
    label=jnp.where(stays, stay_label[source], grown.reshape(-1)[pair]),
    last=jnp.where(stays, beam.last[source], label),
    hashes=jnp.where(stays[:, None], beam.hashes[source], hashes.reshape(-1, 2)[pair]),
  )
  beam = jax.tree.map(lambda after, before: jnp.where(real, after, before), new, beam)
  return beam, (
    jnp.where(real, source, jnp.arange(num_beams)),
    jnp.where(real, label, -1),
  )


def _extended(hashes: jax.Array, labels: jax.Array) -> jax.Array:
  """Hashes uint32 [K, 2] of prefixes -> [K, C, 2] of the same with one of the labels [C] after."""
  mixed = hashes[:, None] ^ (labels.astype(jnp.uint32) + 1)[:, None]
  mixed = mixed * jnp.array(_MULTIPLIERS, jnp.uint32)
  return mixed ^ (mixed >> 15)
