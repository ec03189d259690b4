"""T5's relative position bias: a number per head and bucket of distance (arXiv:1910.10683)."""

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


@functools.cache
def bucket_table(num_buckets: int, max_distance: int) -> np.ndarray:
  """Bucket of each distance 0 … max_distance, int32 [max_distance + 1].

  The first half of the buckets hold one distance each, the rest grow logarithmically up to
  `max_distance`, and all that is further away shares the last one. A table, because rounding of the
  logarithm at the buckets' borders must not depend on the device.
  """
  exact = num_buckets // 2
  distance = np.arange(max_distance + 1)
  log_ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
  # Without the offset, borders at whole numbers (exact * 2**k) come out a rounding error too low.
  large = exact + (log_ratio * (num_buckets - exact) + 1e-6).astype(np.int32)
  return np.where(distance < exact, distance, np.minimum(large, num_buckets - 1)).astype(np.int32)


def relative_position_bucket(
  relative_position: jax.Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
  """Maps key position minus query position (int32, any shape) to a bucket in [0, num_buckets).

  Bidirectional: half of the buckets are for keys behind or at the query, half for keys ahead of
  it. Otherwise keys ahead share bucket 0 with distance 0; causal attention never sees them.
  """
  if bidirectional:
    num_buckets //= 2
    ahead = jnp.where(relative_position > 0, num_buckets, 0)
    distance = jnp.abs(relative_position)
  else:
    ahead = 0
    distance = jnp.maximum(-relative_position, 0)
  table = jnp.asarray(bucket_table(num_buckets, max_distance))
  return ahead + table[jnp.minimum(distance, max_distance)]


class RelativePositionBias(nn.Module):
  """Buckets int32 [T, S] -> bias [1, N, T, S], in the parameter's type."""

  num_heads: int
  num_buckets: int

  @nn.compact
  def __call__(self, buckets: jax.Array) -> jax.Array:
    rel_embedding = self.param(
      "rel_embedding",
      nn.with_logical_partitioning(_init, ("heads", "relpos_buckets")),
      (self.num_heads, self.num_buckets),
    )
    return jnp.take(cast(jax.Array, rel_embedding), buckets, axis=1)[None]
