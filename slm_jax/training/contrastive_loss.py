"""In-batch sampled softmax with several right answers: the loss of a dual encoder.

B utterances, N entities of each, M = B * N, C bytes of an entity.
"""

import jax
import jax.numpy as jnp


def same_texts(texts: jax.Array) -> jax.Array:
  """int32 [M, C] -> bool [M, M], True where two rows are equal."""

  def narrow(same, column):
    return same & (column[:, None] == column[None]), None

  start = jnp.ones((len(texts), len(texts)), bool)
  return jax.lax.scan(narrow, start, texts.T)[0]


def own_and_others(texts: jax.Array, real: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
  """Which entities of a batch are an utterance's own, and which are not.

  An entity that several utterances have is counted once, and is a negative of none of them.

  Args:
    texts: int32 [M, C], those of utterance 0, then those of 1, and so on.
    real: bool [M]; others are places without an entity.
    rows: B.

  Returns:
    (own bool [B, M], others bool [B, M]); every distinct entity is in one of the two, once.
  """
  same = same_texts(texts) & real[:, None] & real[None]
  repeated = jnp.tril(same, k=-1).any(axis=1)
  candidate = real & ~repeated
  own = same.reshape(rows, -1, len(texts)).any(axis=1)
  return own & candidate, candidate[None] & ~own


def sampled_softmax(
  logits: jax.Array, own: jax.Array, others: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Each own entity against all others; entities of one utterance do not compete.

  Args:
    logits: fp32 [B, M].
    own, others: bool [B, M], as of `own_and_others`.

  Returns:
    (summed loss, how many own ones are above all others, how many there are), fp32 scalars.
  """
  floor = jnp.finfo(jnp.float32).min
  against = jax.nn.logsumexp(jnp.where(others, logits, floor), axis=1, keepdims=True)
  losses = jax.nn.softplus(against - logits)
  best = jnp.where(others, logits, floor).max(axis=1, keepdims=True)
  count = own.sum().astype(jnp.float32)
  # `where` before the sum: what is not counted has no gradient either.
  return jnp.where(own, losses, 0).sum(), (own & (logits > best)).sum().astype(jnp.float32), count
