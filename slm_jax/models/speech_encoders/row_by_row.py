"""Subsampling of a batch row by row, where that is faster."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

# What a layer is made of: kernel, bias.
Weights = tuple[jax.Array, jax.Array]


class Layer(nn.Module):
  """Declares a kernel, and a bias along its last axis; returns both, in the type of computation."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  kernel_init: Callable
  dtype: str

  @nn.compact
  def __call__(self) -> Weights:
    kernel_init = nn.with_logical_partitioning(self.kernel_init, self.axes)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[-1:])
    kernel = self.param("kernel", kernel_init, self.shape)
    bias = self.param("bias", bias_init, self.shape[-1:])
    return jnp.asarray(kernel, self.dtype), jnp.asarray(bias, self.dtype)


def one_by_one_on_cpu(function: Callable, *arrays: jax.Array) -> jax.Array:
  """function(*arrays), for all rows at once, or on a CPU one after another.

  The largest intermediate result of one row stays in a CPU's cache, that of a batch does not.
  """

  def one_by_one(*arrays: jax.Array) -> jax.Array:
    return jax.lax.map(lambda row: function(*(x[None] for x in row))[0], arrays)

  if jax.sharding.get_abstract_mesh().size > 1:  # rows that lie on several devices stay there
    return function(*arrays)
  return jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=function)
