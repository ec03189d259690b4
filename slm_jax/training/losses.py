"""Token losses, summed (not averaged), as in T5X: the step divides by the weight of the whole batch."""

import jax
import jax.numpy as jnp


def token_cross_entropy(
  logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of target tokens.

  Args:
    logits: fp32 [B, T, V].
    targets: int32 [B, T].
    weights: fp32 [B, T]; 0 takes a position out.
    z_loss: coefficient of `log(Z)**2`, which keeps the logits from drifting (T5X, Mesh TensorFlow).

  Returns:
    (summed loss, number of weighted positions whose argmax is the target), both fp32 scalars.
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = log_z - target_logits + z_loss * jnp.square(log_z)
  correct = (logits.argmax(-1) == targets) * weights
  return jnp.sum(loss * weights), jnp.sum(correct)
