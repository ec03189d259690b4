"""A speech encoder's forward pass, compiled for devices that need not be there."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoders.families import make_speech_encoder
from slm_jax.training.sharding import BATCH_SPEC, check_batch_size


def lower_encoder(
  config: SpeechEncoderConfig,
  mesh: Mesh,
  *,
  batch_size: int,
  num_samples: int,
  weight_dtype: str = "bfloat16",
):
  """The encoder of any family, traced for a mesh; `.compile()` does the rest.

  Args:
    config: its compute type is the config's.
    mesh: parameters lie on it by the rules of `partitioning`, rows over `data` x `fsdp`.
    batch_size, num_samples: of the int16 audio [B, S].
    weight_dtype: type of the frozen weights, unless the config makes them int8.

  Raises:
    UserError: the batch does not divide over the mesh.
  """
  check_batch_size(batch_size, mesh)
  module = make_speech_encoder(config)
  rows = NamedSharding(mesh, BATCH_SPEC)
  audio = jax.ShapeDtypeStruct((batch_size, num_samples), jnp.int16, sharding=rows)
  lengths = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=rows)
  boxed = jax.eval_shape(module.init, jax.random.key(0), audio, lengths)["params"]  # pyright: ignore

  def weight(leaf, sharding) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if leaf.dtype == jnp.int8 else jnp.dtype(weight_dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

  params = jax.tree.map(weight, nn.unbox(boxed), parameter_shardings(boxed, mesh))
  encode = jax.jit(lambda params, audio, lengths: module.apply({"params": params}, audio, lengths))
  with jax.set_mesh(mesh):
    return encode.lower(params, audio, lengths)
