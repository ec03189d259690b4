"""AdamW or Adafactor with a warm-up, gradient clipping, and one learning-rate schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

ALGORITHMS = ("adamw", "adafactor")
# Names of memory kinds in shardings.
MEMORIES = ("device", "pinned_host")
DECAYS = ("cosine", "rsqrt", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """The optimiser and its schedule.

  `algorithm` is "adamw" (Loshchilov & Hutter, arXiv:1711.05101) or "adafactor" (Shazeer & Stern,
  arXiv:1804.04235): second moments factored into rows and columns, updates clipped to an RMS of 1, no
  first moment. Its state is a thousandth of AdamW's; `b1` and `b2` do nothing there.

  After `warmup_steps` of linear warm-up to `learning_rate` the rate follows `decay`: "cosine" to 0 at the run's last
  step, "rsqrt" (as in T5), or "constant".
  """

  algorithm: str = "adamw"
  learning_rate: float = 1e-3
  warmup_steps: int = 1000
  decay: str = "cosine"
  b1: float = 0.9
  b2: float = 0.98
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  # Makes `learning_rate` relative to each parameter's RMS, as Adafactor does (Shazeer & Stern, arXiv:1804.04235 §8).
  # T5's kernels start at very unequal scales: a plain Adam step that suits embeddings tears its query kernels apart.
  scale_by_parameter_rms: bool = False
  # Where moments lie between steps; "pinned_host" is the host's memory, read and written in every step.
  state_memory: str = "device"

  def __post_init__(self):
    if self.algorithm not in ALGORITHMS:
      raise ValueError(f"algorithm={self.algorithm!r}: expected one of {ALGORITHMS}")
    if self.decay not in DECAYS:
      raise ValueError(f"decay={self.decay!r}: expected one of {DECAYS}")
    if self.state_memory not in MEMORIES:
      raise ValueError(f"state_memory={self.state_memory!r}: expected one of {MEMORIES}")
    if self.learning_rate <= 0 or self.clip_norm <= 0 or self.warmup_steps < 0:
      raise ValueError(
        f"learning_rate={self.learning_rate} and clip_norm={self.clip_norm} must be positive, "
        f"warmup_steps={self.warmup_steps} not negative"
      )


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """The schedule: update number (0 for the first) -> learning rate."""
  warmup = max(config.warmup_steps, 1)

  def schedule(count):
    step = jnp.asarray(count, jnp.float32) + 1.0
    if config.decay == "cosine":
      progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
      after = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    elif config.decay == "rsqrt":
      after = jnp.sqrt(warmup / jnp.maximum(step, warmup))
    else:
      after = jnp.float32(1.0)
    return config.learning_rate * jnp.minimum(step / warmup, 1.0) * after

  return schedule


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
  """Clip by global norm, then the algorithm. Vectors (norm scales, biases) are not decayed."""
  if config.algorithm == "adamw":
    scaling = optax.scale_by_adam(b1=config.b1, b2=config.b2)
  else:
    scaling = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
  transformations = [
    optax.clip_by_global_norm(config.clip_norm),
    scaling,
    optax.add_decayed_weights(
      config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    ),
  ]
  if config.scale_by_parameter_rms:
    transformations.append(optax.scale_by_param_block_rms())
  return optax.chain(
    *transformations, optax.scale_by_learning_rate(learning_rate(config, total_steps))
  )
