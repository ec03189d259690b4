"""Double precision for the few steps that need it, in a program that is fp32 otherwise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def in_double(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """`function` of fp32 `x`, computed in float64 on CPUs and GPUs, in fp32 on TPUs, which have no float64 FFT.

  In fp32 the rounding of a spectrum is 1e-7 of its loudest bins. In bins that are empty, as the upper
  half of speech that was once sampled at 8 kHz, that is a share of 1e-3 of what is there, and a logarithm
  normalised over the utterance shows it whole. Extractors written in NumPy compute in float64.

  Args:
    function: elementwise in its batch; takes on the dtype of its argument. It is not differentiated or
      vectorised: JAX would do both outside of the float64 mode.
    x: fp32.

  Returns:
    fp32, of the function's shape.
  """

  def double(x: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
      return function(x.astype(jnp.float64)).astype(jnp.float32)

  return jax.lax.platform_dependent(x, tpu=function, default=double)
