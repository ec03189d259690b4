"""Parameters straight onto the devices of a mesh, shard by shard."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slm_jax.interop.stored_parameter import map_all


def place(parameter: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
  """Puts a parameter where `sharding` wants it.

  A process reads the slices of its own devices alone, each once however many devices hold it, and
  has one of them in host memory at a time.

  Args:
    parameter: a StoredParameter or QuantizedParameter, or an array that every process holds whole.
    sharding: None is the default device, to which JAX does not bind the array.

  Returns:
    An array of the parameter's shape and type.

  Raises:
    DamagedWeights: what this process read is NaN or infinite.
    UserError: the file is damaged.
  """
  if sharding is None:
    return jax.device_put(np.asarray(parameter))
  shape = tuple(parameter.shape)
  devices_of: dict[tuple, list] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    whole = index if index is not None else tuple(slice(None) for _ in shape)
    ranges = tuple(one.indices(size)[:2] for one, size in zip(whole, shape, strict=True))
    devices_of.setdefault(ranges, []).append(device)
  shards = []
  for ranges, devices in devices_of.items():
    index = tuple(slice(*one) for one in ranges)
    if hasattr(parameter, "read"):
      content = parameter.read(index)
    else:
      content = np.asarray(parameter[index])
    copies = [jax.device_put(content, device) for device in devices]
    # The content is let go before the next one is read.
    jax.block_until_ready(copies)
    shards += copies
    del content
  return jax.make_array_from_single_device_arrays(
    shape, sharding, shards, dtype=np.dtype(parameter.dtype)
  )


def place_all(
  parameters: Mapping[str, Any], shardings: Mapping[str, jax.sharding.Sharding] | None
) -> dict[str, jax.Array]:
  """`place` of every parameter by name; DamagedWeights names all damaged tensors together."""
  return map_all(
    lambda name, leaf: place(leaf, None if shardings is None else shardings[name]), parameters
  )
