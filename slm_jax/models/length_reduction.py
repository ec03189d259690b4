"""Fewer speech frames for the LM: by a fixed factor, or by what the CTC head recognised.

All shapes are static.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.ctc import pack_left, starts_of_runs

FIXED_KINDS = ("drop", "random_drop", "stack", "mean", "conv")
CTC_KINDS = ("ctc_blank", "ctc_collapse", "ctc_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthReductionConfig:
  """How to reduce.

  With k = `factor`, groups of k frames become one:
    drop: the first frame of the group.
    random_drop: in training a random real frame of the group, otherwise as drop.
    stack: the group's frames side by side (k times as wide), 0 for padding.
    mean: the mean of the group's real frames.
    conv: a learned convolution of stride k, centred on the group's first frame, reading k - 1
      frames to each side.
  By the most probable CTC class of each frame, left-packed into `max_frames` of the input length:
    ctc_blank: the frames that are not blank (arXiv:2306.07944).
    ctc_collapse: the mean of each run of frames of one class, the blank's included
      (arXiv:2102.01578 §3).
    ctc_tokens: both, the mean of each run but the blank's: one frame for each token of the greedy
      CTC text.
  """

  kind: str = "drop"
  factor: int = 4
  max_frames: float = 0.5
  dtype: str = "float32"

  def __post_init__(self):
    if self.kind not in FIXED_KINDS + CTC_KINDS:
      raise ValueError(f"kind={self.kind!r}: expected one of {FIXED_KINDS + CTC_KINDS}")
    if self.factor < 1:
      raise ValueError(f"factor={self.factor}: expected at least 1")
    if not 0 < self.max_frames <= 1:
      raise ValueError(f"max_frames={self.max_frames}: expected a share above 0 and up to 1")

  def output_length(self, num_frames: int) -> int:
    """T' for T = `num_frames`."""
    if self.kind in CTC_KINDS:
      return math.ceil(num_frames * self.max_frames)
    return -(-num_frames // self.factor)

  @property
  def is_fixed(self) -> bool:
    """Whether it has neither weights nor random choices."""
    return self.kind not in ("conv", "random_drop")

  def output_dim(self, width: int) -> int:
    """D' for D = `width`."""
    return width * self.factor if self.kind == "stack" else width


def group(x: jax.Array, factor: int) -> jax.Array:
  """[B, T, ...] -> [B, ceil(T / factor), factor, ...], filled up with zeros."""
  missing = -x.shape[1] % factor
  x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))
  return x.reshape(x.shape[0], -1, factor, *x.shape[2:])


def non_blank(mask: jax.Array, ctc_logits: jax.Array, blank_id: int = 0) -> jax.Array:
  """Marks the real frames whose most probable class is not the blank.

  An utterance of blanks alone keeps its least blank real frame: the LM is to see that there was
  speech. mask bool [B, T], ctc_logits [B, T, V] -> bool [B, T].
  """
  keep = mask & (jnp.argmax(ctc_logits, axis=-1) != blank_id)
  blank = jax.nn.log_softmax(ctc_logits.astype(jnp.float32), axis=-1)[..., blank_id]
  least_blank = jnp.argmin(jnp.where(mask, blank, jnp.inf), axis=1)
  fallback = mask & (jnp.arange(mask.shape[1])[None] == least_blank[:, None])
  return jnp.where(keep.any(axis=1, keepdims=True), keep, fallback)


def keep_non_blank(
  frames: jax.Array, mask: jax.Array, ctc_logits: jax.Array, size: int, blank_id: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Drops the frames that `non_blank` does not mark.

  Args:
    frames: [B, T, D].
    mask: bool [B, T], True = real.
    ctc_logits: [B, T, V].
    size: T', positions of the result.
    blank_id: class of the blank.

  Returns:
    ([B, T', D] left-packed, 0 at padding; mask bool [B, T']; int32 [B], frames that did not fit).
  """
  keep = non_blank(mask, ctc_logits, blank_id)
  packed, packed_mask = pack_left(frames, keep, size)
  return packed, packed_mask, jnp.maximum(keep.sum(axis=1) - size, 0)


def average_runs(
  frames: jax.Array, mask: jax.Array, ctc_logits: jax.Array, size: int, blank_id: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Replaces each run of frames of one most probable class by its mean.

  Arguments and results as of `keep_non_blank`.
  """
  return _average(frames, mask, starts_of_runs(jnp.argmax(ctc_logits, axis=-1), mask), size)


def average_tokens(
  frames: jax.Array, mask: jax.Array, ctc_logits: jax.Array, size: int, blank_id: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Replaces each run of frames of one most probable class but the blank by its mean.

  Arguments and results as of `keep_non_blank`.
  """
  keep = non_blank(mask, ctc_logits, blank_id)
  starts = keep & starts_of_runs(jnp.argmax(ctc_logits, axis=-1), mask)
  # The one blank frame that stands for an utterance of blanks need not start its run.
  alone = keep & ~starts.any(axis=1, keepdims=True)
  return _average(frames, keep, starts | alone, size)


def _average(
  frames: jax.Array, mask: jax.Array, starts: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Means of the runs of marked frames, a run beginning at each of `starts`; results as above."""
  run = jnp.cumsum(starts, axis=1) - 1  # [B, T], the index of the run a marked frame is in
  member = (run[:, None, :] == jnp.arange(size)[None, :, None]) & mask[:, None, :]  # [B, T', T]
  count = member.sum(axis=-1, keepdims=True)
  weights = member / jnp.maximum(count, 1).astype(frames.dtype)
  means = jnp.einsum("BRT,BTD->BRD", weights.astype(frames.dtype), frames)
  return means, count[..., 0] > 0, jnp.maximum(starts.sum(axis=1) - size, 0)


class LengthReduction(nn.Module):
  """Applies one of the kinds. Random choices take the rng "length_reduction".

  The CTC kinds sow "frames_lost" (int32 [B], what did not fit into `max_frames`) into
  "intermediates".
  """

  config: LengthReductionConfig

  @nn.compact
  def __call__(
    self,
    frames: jax.Array,
    mask: jax.Array,
    ctc_logits: jax.Array | None = None,
    *,
    blank_id: int = 0,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Reduces.

    Args:
      frames: [B, T, D].
      mask: bool [B, T], True = real, real frames first.
      ctc_logits: [B, T, V], the CTC kinds need them.
      blank_id: class of the blank.
      train: whether random_drop draws.

    Returns:
      (frames [B, T', D'], 0 at padding; mask bool [B, T']), T' = config.output_length(T), D' =
      config.output_dim(D).

    Raises:
      ValueError: a CTC kind without logits.
    """
    cfg, factor = self.config, self.config.factor
    frames = jnp.where(mask[..., None], frames, 0)
    if cfg.kind in CTC_KINDS:
      if ctc_logits is None:
        raise ValueError(
          f"length reduction kind={cfg.kind!r} needs CTC logits, but the encoder has no CTC head"
        )
      kinds = {
        "ctc_blank": keep_non_blank,
        "ctc_collapse": average_runs,
        "ctc_tokens": average_tokens,
      }
      reduce, size = kinds[cfg.kind], cfg.output_length(frames.shape[1])
      frames, mask, lost = reduce(frames, mask, ctc_logits, size, blank_id)
      self.sow("intermediates", "frames_lost", lost)
      return frames, mask

    groups, real = group(frames, factor), group(mask, factor)  # [B, T', k, D], [B, T', k]
    mask = real[..., 0]
    if cfg.kind == "drop" or (cfg.kind == "random_drop" and not train):
      return groups[:, :, 0], mask
    if cfg.kind == "random_drop":
      count = real.sum(axis=-1)
      share = jax.random.uniform(self.make_rng("length_reduction"), count.shape)
      choice = jnp.minimum((share * count).astype(jnp.int32), jnp.maximum(count - 1, 0))
      return jnp.take_along_axis(groups, choice[..., None, None], axis=2)[:, :, 0], mask
    if cfg.kind == "stack":
      return groups.reshape(*groups.shape[:2], -1), mask
    if cfg.kind == "mean":
      count = jnp.maximum(real.sum(axis=-1, keepdims=True), 1).astype(frames.dtype)
      return groups.sum(axis=2) / count, mask
    width = frames.shape[-1]
    previous = jnp.pad(groups[:, :-1, 1:], ((0, 0), (1, 0), (0, 0), (0, 0)))
    window = jnp.concatenate([previous, groups], axis=2)  # [B, T', 2k - 1, D]
    out = nn.Dense(
      width,
      dtype=cfg.dtype,
      kernel_init=nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), ("frames_in", "embed")
      ),
      bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
      name="conv",
    )(window.reshape(*window.shape[:2], -1))
    return jnp.where(mask[..., None], out, 0), mask
