"""Linear layers of Gemma's audio towers, whose activations may be held within stored bounds."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoders.gemma_audio_config import GemmaAudioConfig

init = nn.initializers.lecun_normal()
# Bounds of layers in the order that they act in.
BOUNDS = ("input_min", "input_max", "output_min", "output_max")


def clip(x: jax.Array, config: GemmaAudioConfig) -> jax.Array:
  """Holds x within `config.clipping`, or what its type can hold."""
  limit = min(config.clipping, float(jnp.finfo(x.dtype).max))
  return jnp.clip(x, -limit, limit)


class Linear(nn.Module):
  """Linear layer without bias; with `config.clipped_linears` between two clips."""

  config: GemmaAudioConfig
  features: int
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., in] -> [..., features]."""
    cfg = self.config
    dense = Dense(self.features, self.axes, cfg.dtype, init, name="dense")
    if not cfg.clipped_linears:
      return dense(x)

    def bound(name: str) -> jax.Array:
      # Finite, as stored weights must be.
      largest = float(jnp.finfo(jnp.float32).max)
      start = nn.initializers.constant(largest if name.endswith("max") else -largest)
      value = self.param(name, nn.with_logical_partitioning(start, ()), ())
      return jnp.asarray(value, cfg.dtype)

    input_min, input_max, output_min, output_max = (bound(name) for name in BOUNDS)
    return jnp.clip(dense(jnp.clip(x, input_min, input_max)), output_min, output_max)
