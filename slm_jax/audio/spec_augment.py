"""SpecAugment: random bands and spans of log-mel features set to 0 (arXiv:1904.08779 §2)."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
  """Numbers and greatest sizes of the masks.

  Time masks are adaptive (arXiv:1912.05533 §3): no longer than `max_time_share` of the example's
  own real frames, so that a short utterance is never wiped out. The time warp of the paper is left
  out, as in USM's public relatives.
  """

  num_freq_masks: int = 2
  max_freq_bins: int = 27
  num_time_masks: int = 2
  max_time_share: float = 0.05

  def __post_init__(self):
    if min(self.num_freq_masks, self.num_time_masks, self.max_freq_bins) < 0:
      raise ValueError(
        f"num_freq_masks={self.num_freq_masks}, num_time_masks={self.num_time_masks}, "
        f"max_freq_bins={self.max_freq_bins}: none may be negative"
      )
    if not 0 <= self.max_time_share <= 1:
      raise ValueError(f"max_time_share={self.max_time_share}: expected a share between 0 and 1")


def _spans(
  key: jax.Array, num_spans: int, size: int, max_width: jax.Array, extent: jax.Array
) -> jax.Array:
  """Union of random spans, bool [B, size].

  Widths are uniform in [0, max_width], places uniform inside [0, extent), both int32 [B].
  """
  width_key, start_key = jax.random.split(key)
  shape = (extent.shape[0], num_spans, 1)
  limit, extent = max_width[:, None, None], extent[:, None, None]
  width = jnp.floor(jax.random.uniform(width_key, shape) * (limit + 1)).astype(jnp.int32)
  start = jnp.floor(jax.random.uniform(start_key, shape) * (extent - width + 1)).astype(jnp.int32)
  position = jnp.arange(size)
  return jnp.any((position >= start) & (position < start + width), axis=1)


def spec_augment(
  key: jax.Array, features: jax.Array, mask: jax.Array, config: SpecAugmentConfig
) -> jax.Array:
  """Sets random bands and spans of each example to 0, the features' long-term mean.

  Args:
    key: the random key; the result is a function of it.
    features: [B, T, F].
    mask: bool [B, T], True = real, real frames first; time masks fall on real frames only.
    config: numbers and sizes.

  Returns:
    [B, T, F].
  """
  batch, num_frames, num_bins = features.shape
  freq_key, time_key = jax.random.split(key)
  lengths = mask.sum(axis=1).astype(jnp.int32)
  max_width = jnp.floor(lengths * config.max_time_share).astype(jnp.int32)
  bins = jnp.full((batch,), min(config.max_freq_bins, num_bins), jnp.int32)
  hidden_bins = _spans(
    freq_key, config.num_freq_masks, num_bins, bins, jnp.full((batch,), num_bins, jnp.int32)
  )
  hidden_frames = _spans(time_key, config.num_time_masks, num_frames, max_width, lengths)
  hidden = hidden_bins[:, None, :] | hidden_frames[:, :, None]
  return jnp.where(hidden & mask[..., None], 0.0, features)
