"""Conformer blocks as first published (arXiv:2005.08100 §2): layer norms, and a batch norm after the
depthwise convolution.

The batch norm is that of inference: its running mean and variance are parameters, no batch is
looked at. Families differ in their self-attention, biases, and weights of the residual sums.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.partitioning import keep_rows_apart
from slm_jax.models.quantization import Dense

init = nn.initializers.lecun_normal()
# Makes the attention module, called (x [B, T, D], mask bool [B, T], positions) -> [B, T, D]; its name
# is given as `name`.
MakeAttention = Callable[..., nn.Module]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockShape:
  """What blocks of one family have in common.

  Attributes:
    ffn_dim: F, inner width of the feed-forward modules.
    kernel_size: taps of the depthwise convolution; an even number reads one frame more ahead.
    conv_dim: channels of the depthwise convolution; None is D.
    dtype: type of computation.
    norm_bias, ffn_bias, pointwise_bias, depthwise_bias: whether such layers have biases.
    norm_epsilon: of the layer norms.
    ffn_weights, conv_weights: (residual stream, module) factors of the sum after such a module.
  """

  ffn_dim: int
  kernel_size: int
  conv_dim: int | None = None
  dtype: str = "float32"
  norm_bias: bool = True
  ffn_bias: bool = True
  pointwise_bias: bool = True
  depthwise_bias: bool = True
  norm_epsilon: float = 1e-5
  ffn_weights: tuple[float, float] = (1.0, 0.5)
  conv_weights: tuple[float, float] = (1.0, 1.0)


def layer_norm(shape: BlockShape, name: str) -> nn.LayerNorm:
  """Layer norm over D."""
  return nn.LayerNorm(
    epsilon=shape.norm_epsilon,
    dtype=shape.dtype,
    use_bias=shape.norm_bias,
    use_fast_variance=False,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
    name=name,
  )


class FeedForward(nn.Module):
  """Linear, swish, linear."""

  shape: BlockShape

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    shape = self.shape

    def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
      return Dense(features, axes, shape.dtype, init, use_bias=shape.ffn_bias, name=name)

    y = nn.swish(dense(shape.ffn_dim, ("embed", "mlp"), "wi")(x))
    return dense(x.shape[-1], ("mlp", "embed"), "wo")(y)


class NormalisedDepthwiseConv(nn.Module):
  """Convolution over time, one filter per channel, zero beyond the ends; then the batch norm.

  The norm is folded into the filters. Shifted products, as in `slm_jax.models.conformer`.
  """

  kernel_size: int
  use_bias: bool
  dtype: str
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, C] -> [B, T, C]; (kernel_size - 1) // 2 frames back, the rest ahead."""
    num_frames, width = x.shape[1:]
    kernel_init = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=0, out_axis=(), batch_axis=1
    )
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(kernel_init, ("conv_kernel", "mlp")),
      (self.kernel_size, width),
    )

    def channels(name: str, start: Callable) -> jax.Array:
      value: Any = self.param(name, nn.with_logical_partitioning(start, ("mlp",)), (width,))
      return jnp.asarray(value, jnp.float32)

    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    mean, variance = channels("mean", zeros), channels("variance", ones)
    factor = channels("scale", ones) * jax.lax.rsqrt(variance + self.epsilon)
    offset = channels("offset", zeros) - mean * factor
    if self.use_bias:
      offset = offset + channels("bias", zeros) * factor
    kernel = (jnp.asarray(kernel, jnp.float32) * factor).astype(self.dtype)
    back = (self.kernel_size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (back, self.kernel_size - 1 - back), (0, 0)))
    y = padded[:, :num_frames] * kernel[0]
    for k in range(1, self.kernel_size):
      y = y + padded[:, k : k + num_frames] * kernel[k]
    return y + offset.astype(self.dtype)


class ConvModule(nn.Module):
  """GLU, depthwise convolution, batch norm, swish, linear."""

  shape: BlockShape

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; real frames read zeros in place of padding."""
    shape, width = self.shape, x.shape[-1]

    def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
      return Dense(features, axes, shape.dtype, init, use_bias=shape.pointwise_bias, name=name)

    channels = shape.conv_dim or width
    gate = nn.sigmoid(dense(channels, ("embed", "mlp"), "gate")(x))
    y = dense(channels, ("embed", "mlp"), "value")(x) * gate
    y = jnp.where(mask[..., None], y, 0)
    y = NormalisedDepthwiseConv(
      shape.kernel_size, shape.depthwise_bias, shape.dtype, name="depthwise"
    )(y)
    return dense(width, ("mlp", "embed"), "out")(nn.swish(y))


class Block(nn.Module):
  """Feed-forward, self-attention, convolution, feed-forward, each behind a norm; norm."""

  shape: BlockShape
  make_attention: MakeAttention

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, positions: Any) -> tuple[jax.Array, None]:
    """x [B, T, D], mask bool [B, T] -> [B, T, D]; the second result is what a scan collects."""
    shape = self.shape

    def added(weights: tuple[float, float], y: jax.Array) -> jax.Array:
      return weights[0] * x + weights[1] * y

    x = added(shape.ffn_weights, FeedForward(shape, name="ffn_in")(self._norm("ffn_in_norm", x)))
    attention = self.make_attention(name="attention")
    x = x + attention(self._norm("attention_norm", x), mask, positions)
    y = ConvModule(shape, name="conv")(self._norm("conv_norm", x), mask)
    x = added(shape.conv_weights, y)
    x = added(shape.ffn_weights, FeedForward(shape, name="ffn_out")(self._norm("ffn_out_norm", x)))
    return keep_rows_apart(self._norm("norm", x)), None

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    return layer_norm(self.shape, name)(x)


def block_stack(
  shape: BlockShape, make_attention: MakeAttention, *, num_layers: int, remat: str, name: str
) -> nn.Module:
  """`num_layers` blocks, scanned: parameters carry a leading "layers" axis.

  Called as a block is; `remat` is of `slm_jax.models.speech_encoder.REMAT_KINDS`.
  """
  block = Block
  if remat != "none":
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = nn.remat(block, policy=policy if remat == "dots" else None, prevent_cse=False)
  layers = nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]  mask, positions
    length=num_layers,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  return layers(shape, make_attention, name=name)
