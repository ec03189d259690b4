"""Layers that w2v-BERT's blocks and its adapter share."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.quantization import Dense
from slm_jax.models.speech_encoders.w2v_bert_config import ACTIVATIONS, W2vBertConfig

init = nn.initializers.lecun_normal()


def layer_norm(config: W2vBertConfig, name: str, axis: str = "embed") -> nn.LayerNorm:
  """Layer norm over the last axis, whose logical name is `axis`."""
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps,
    dtype=config.dtype,
    use_fast_variance=False,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axis,)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axis,)),
    name=name,
  )


def rematerialised(block: type[nn.Module], config: W2vBertConfig) -> type[nn.Module]:
  """The block, with what `config.remat` asks to compute again in a backward pass."""
  if config.remat == "none":
    return block
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return nn.remat(block, policy=policy if config.remat == "dots" else None, prevent_cse=False)


class FeedForward(nn.Module):
  """Linear, activation, linear."""

  config: W2vBertConfig
  activation: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    cfg = self.config
    dense = functools.partial(Dense, dtype=cfg.dtype, kernel_init=init, use_bias=True)
    y = dense(cfg.ffn_dim, ("embed", "mlp"), name="wi")(x)
    return dense(x.shape[-1], ("mlp", "embed"), name="wo")(ACTIVATIONS[self.activation](y))


class StridedGLU(nn.Module):
  """Strided convolution over time to twice the width, one half gating the other.

  One product with all taps side by side.
  """

  kernel_size: int
  stride: int
  padding: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T', D], zeros beyond the ends."""
    batch, num_frames, width = x.shape
    shape = (self.kernel_size, width, 2 * width)
    kernel_init = nn.with_logical_partitioning(init, ("conv_kernel", "embed", "mlp"))
    kernel = jnp.asarray(self.param("kernel", kernel_init, shape), self.dtype)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",))
    bias = jnp.asarray(self.param("bias", bias_init, (2 * width,)), self.dtype)
    steps = (num_frames + 2 * self.padding - self.kernel_size) // self.stride + 1
    # Frames of one step lie side by side, so that every tap is a plain slice.
    reach = steps - 1 + -(-self.kernel_size // self.stride)
    right = reach * self.stride - self.padding - num_frames
    padded = jnp.pad(x, ((0, 0), (self.padding, max(0, right)), (0, 0)))
    grid = padded[:, : reach * self.stride].reshape(batch, reach, self.stride, width)
    taps = [
      grid[:, tap // self.stride : tap // self.stride + steps, tap % self.stride]
      for tap in range(self.kernel_size)
    ]
    y = jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, 2 * width) + bias
    value, gate = jnp.split(y, 2, axis=-1)
    return value * nn.sigmoid(gate)
