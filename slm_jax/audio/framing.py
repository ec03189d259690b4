"""Waveforms cut into overlapping frames."""

import jax
import jax.numpy as jnp


def sample_mask(lengths: jax.Array, num_samples: int) -> jax.Array:
  """lengths int32 [B] -> bool [B, S], True = real sample."""
  return jnp.arange(num_samples)[None] < lengths[:, None]


def to_float(audio: jax.Array) -> jax.Array:
  """Audio int16, or float in [-1, 1], of any shape -> fp32 in [-1, 1]."""
  if audio.dtype == jnp.int16:
    return audio.astype(jnp.float32) / 32768.0
  return audio.astype(jnp.float32)


def cut_frames(
  audio: jax.Array, *, window: int, hop: int, start: int, num_frames: int
) -> jax.Array:
  """Overlapping frames, cut without a gather.

  Args:
    audio: [B, S].
    window: samples of a frame.
    hop: samples from one frame to the next.
    start: sample at which frame 0 begins; negative ones, and those past S, read as zero.
    num_frames: T.

  Returns:
    [B, T, window]; frame t holds samples start + t * hop … start + t * hop + window - 1.
  """
  # Whole hops laid side by side: a frame is a run of neighbouring hops.
  hops_per_window = -(-window // hop)
  total = (num_frames + hops_per_window - 1) * hop
  audio = audio[:, max(0, start) :]
  left = max(0, -start)
  audio = jnp.pad(audio, ((0, 0), (left, max(0, total - left - audio.shape[1]))))[:, :total]
  hops = audio.reshape(audio.shape[0], -1, hop)
  pieces = [hops[:, k : k + num_frames] for k in range(hops_per_window)]
  return jnp.concatenate(pieces, axis=-1)[..., :window]
