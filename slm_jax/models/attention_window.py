"""Self-attention in blocks: what each frame may see, without scores for what it may not.

T frames are cut into blocks of W; the queries of a block meet the K keys of their own block and of
some neighbours. Full attention is one block of all frames.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

ATTENTION_KINDS = ("local", "chunk", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionWindow:
  """A plan for sequences of one length.

  Attributes:
    block: W.
    before, after: neighbouring blocks that a query's block meets.
    left, right: furthest keys back and ahead that a query sees; None is no limit of its own.
  """

  block: int
  before: int = 0
  after: int = 0
  left: int | None = None
  right: int | None = None

  @property
  def num_keys(self) -> int:
    """K."""
    return (self.before + 1 + self.after) * self.block

  @property
  def first_key(self) -> int:
    """Position of a block's first key, relative to its first query."""
    return -self.before * self.block

  def blocks(self, x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [B, T / W, W, ...], filled up with zeros."""
    missing = -x.shape[1] % self.block
    x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, self.block, *x.shape[2:])

  def keys(self, blocks: jax.Array) -> jax.Array:
    """[B, T / W, W, ...] -> each block with its neighbours, [B, T / W, K, ...], zeros past the ends."""
    if not self.before and not self.after:
      return blocks
    count = blocks.shape[1]
    ends = ((0, 0), (self.before, self.after)) + ((0, 0),) * (blocks.ndim - 2)
    padded = jnp.pad(blocks, ends)
    shifts = range(self.before + 1 + self.after)
    return jnp.concatenate([padded[:, shift : shift + count] for shift in shifts], axis=2)

  def allowed(self, mask: jax.Array) -> jax.Array:
    """mask bool [B, T] -> bool [B, T / W, 1 or W, K], True where the query may see the key."""
    real = self.keys(self.blocks(mask))[:, :, None]
    if self.left is None and self.right is None:
      return real
    ahead = np.arange(self.num_keys) + self.first_key - np.arange(self.block)[:, None]
    seen = np.ones_like(ahead, bool)
    if self.left is not None:
      seen &= ahead >= -self.left
    if self.right is not None:
      seen &= ahead <= self.right
    return real & seen


def attention_window(
  kind: str, num_frames: int, *, left: int, right: int, chunk: int
) -> AttentionWindow:
  """The plan for T = `num_frames`.

  Args:
    kind: "full"; "local": each frame sees `left` frames back and `right` ahead; "chunk": each frame
      sees its own chunk of `chunk` frames.
  """
  if kind == "full":
    return AttentionWindow(block=num_frames)
  if kind == "chunk":
    return AttentionWindow(block=min(chunk, num_frames))
  block = max(left, right, 1)
  if num_frames <= 2 * block:
    return AttentionWindow(block=num_frames, left=left, right=right)
  return AttentionWindow(
    block=block, before=-(-left // block), after=-(-right // block), left=left, right=right
  )
