"""Several examples in one row of the LM.

B examples, K of them in each of R = B / K rows, T positions of an example, L of a row.
"""

import jax
import jax.numpy as jnp


def pack_rows(
  x: jax.Array, mask: jax.Array, examples: int, length: int
) -> tuple[jax.Array, jax.Array]:
  """Puts each `examples` neighbours into one row, without gaps between them.

  Args:
    x: [B, T, ...], real positions first.
    mask: bool [B, T], True = real.
    examples: K, a divisor of B.
    length: L. Positions past it are cut off; a row of floats that lost some is NaN throughout, so
      that no loss passes for that of the whole.

  Returns:
    ([R, L, ...], segment ids int32 [R, L]: 1 … K by example, 0 at padding); padding holds zeros.
  """
  rows, width = x.shape[0] // examples, x.shape[1]
  counts = mask.sum(-1, dtype=jnp.int32).reshape(rows, examples)
  ends = jnp.cumsum(counts, axis=1)  # [R, K]
  position = jnp.arange(length)
  # Examples that end at or before a position stand before it.
  segment = (position[None, :, None] >= ends[:, None, :]).sum(-1)  # [R, L], K past the last
  real = segment < examples
  segment = jnp.minimum(segment, examples - 1)
  start = jnp.take_along_axis(ends - counts, segment, axis=1)
  source = jnp.where(real, segment * width + position - start, 0)
  flat = x.reshape(rows, examples * width, *x.shape[2:])
  trailing = (1,) * (x.ndim - 2)
  packed = jnp.take_along_axis(flat, source.reshape(rows, length, *trailing), axis=1)
  packed = packed * real.astype(x.dtype).reshape(rows, length, *trailing)
  if jnp.issubdtype(x.dtype, jnp.floating):
    lost = (ends[:, -1] > length).reshape(rows, 1, *trailing)
    packed = jnp.where(lost, jnp.nan, packed)
  return packed, jnp.where(real, segment + 1, 0)
