"""int8 weights of frozen linear layers: one scale for each output, symmetric, rounded to nearest.

W[i, o] is stored as round(W[i, o] / s[o]) with s[o] = max_i |W[i, o]| / 127. Activations stay in the
type of computation; a product with W is the product with the integers, times s.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

WEIGHT_KINDS = ("float", "int8")
# A quantised parameter `kernel` has its scales beside it, as `kernel_scale`.
SCALE_SUFFIX = "_scale"
LARGEST = 127


class QuantizedKernel(NamedTuple):
  """A linear layer's weights: values int8 [in, out], scale fp32 [out]."""

  values: jax.Array
  scale: jax.Array


Kernel = jax.Array | QuantizedKernel


def scales(largest: np.ndarray) -> np.ndarray:
  """Greatest magnitude of each output's weights -> its scale, fp32; 1 where all are 0."""
  largest = np.asarray(largest, np.float32)
  return np.where(largest > 0, largest / np.float32(LARGEST), np.float32(1))


def quantize(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Weights of any float type, and scales that broadcast to them -> int8 of the same shape."""
  rounded = np.rint(np.asarray(weights, np.float32) / scale)
  return np.clip(rounded, -LARGEST, LARGEST).astype(np.int8)


def declare(
  module: nn.Module, name: str, kind: str, init: Callable, shape: tuple[int, ...], axes: tuple
) -> Kernel:
  """A kernel as parameters of `module`, [in, out], with logical `axes`.

  Args:
    kind: of `WEIGHT_KINDS`. int8 weights are read from a quantised base; fresh ones are zeros.
    init: initialiser of float weights.
  """
  if kind == "float":
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)  # pyright: ignore
  zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
  ones = nn.with_logical_partitioning(nn.initializers.ones, axes[1:])
  values: Any = module.param(name, zeros, shape, jnp.int8)
  return QuantizedKernel(values, module.param(name + SCALE_SUFFIX, ones, shape[1:]))  # pyright: ignore


@jax.custom_vjp
def _int8_product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
  return multiply_to_float32(x, QuantizedKernel(values, scale)).astype(x.dtype)


def _forward(x, values, scale):
  # The integers themselves are kept for the backward pass, not what they were cast to.
  return _int8_product(x, values, scale), (values, scale)


def _backward(residuals, gradient):
  values, scale = residuals
  scaled = (gradient.astype(jnp.float32) * scale).astype(gradient.dtype)
  return jnp.einsum("...o,io->...i", scaled, _as_floats(values, gradient.dtype)), None, None


_int8_product.defvjp(_forward, _backward)


def multiply(x: jax.Array, kernel: Kernel) -> jax.Array:
  """x [..., in] times a kernel [in, out] -> [..., out], in x's type; quantised kernels get no gradient."""
  if isinstance(kernel, QuantizedKernel):
    return _int8_product(x, kernel.values, kernel.scale)
  return jnp.einsum("...i,io->...o", x, kernel.astype(x.dtype))


def _as_floats(values: jax.Array, dtype: Any) -> jax.Array:
  """Integers cast where they are used: a compiler that may move the cast out of a loop over layers would have the
  floats of all layers in memory."""
  return jax.lax.optimization_barrier(values).astype(dtype)


def multiply_to_float32(x: jax.Array, kernel: Kernel) -> jax.Array:
  """As `multiply`, summed in fp32 and left in it, whatever the type of computation."""
  values, scale = kernel if isinstance(kernel, QuantizedKernel) else (kernel, None)
  values = values.astype(x.dtype) if scale is None else _as_floats(values, x.dtype)
  y = jnp.einsum("...i,io->...o", x, values, preferred_element_type=jnp.float32)
  return y if scale is None else y * scale


class Dense(nn.Module):
  """Linear layer whose frozen weights may be int8.

  Attributes:
    features: width of the result.
    axes: logical axes of the kernel, (in, out).
    dtype: type of computation and of the result.
    kernel_init: of float weights.
    use_bias: adds a bias, whose logical axis is the kernel's last.
    weights: of `WEIGHT_KINDS`.
    lora_rank: R of a low-rank update `lora_down` [in, R] times `lora_up` [R, out] beside the kernel (LoRA,
      arXiv:2106.09685 §4.1, alpha = R), fp32 whatever the kernel is; 0 for none. It starts at 0.
  """

  features: int
  axes: tuple[str, str]
  dtype: str
  kernel_init: Callable
  use_bias: bool = False
  weights: str = "float"
  lora_rank: int = 0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., in] -> [..., features]."""
    shape = (x.shape[-1], self.features)
    kernel = declare(self, "kernel", self.weights, self.kernel_init, shape, self.axes)
    y = multiply(x.astype(self.dtype), kernel)
    if self.use_bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      y = y + jnp.asarray(self.param("bias", init, (self.features,)), self.dtype)
    if self.lora_rank:
      y = y + self._low_rank_update(x)
    return y

  def _low_rank_update(self, x: jax.Array) -> jax.Array:
    """x [..., in] -> [..., features]."""
    fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    shapes = (x.shape[-1], self.lora_rank), (self.lora_rank, self.features)
    axes = (self.axes[0], "lora_rank"), ("lora_rank", self.axes[1])
    x = x.astype(self.dtype)
    for name, init, shape, names in zip(
      ("lora_down", "lora_up"), (fan_in, nn.initializers.zeros), shapes, axes, strict=True
    ):
      x = multiply(x, declare(self, name, "float", init, shape, names))
    return x
