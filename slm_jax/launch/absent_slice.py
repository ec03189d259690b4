"""Devices of a TPU slice that is not there, for compiling ahead of time with the libtpu wheel."""

import importlib.util
import os

from jax.experimental import topologies

from slm_jax.errors import UserError

# libtpu reads these once, when it is loaded.
_ENVIRONMENT = {
  # Outside Google Cloud there is no metadata server to ask for the slice's shape.
  "TPU_SKIP_MDS_QUERY": "1",
  # Nothing is run, so other processes may have loaded it too.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


# Without a metadata server libtpu complains of what it does not know of this machine; a compiler need not know.
_NO_TPU_HERE = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}


def slice_devices(topology: str, num_slices: int = 1) -> list:
  """Devices of slices such as "v5e:4x4" or "v4:4x4x4"; programs compile for them, none can run.

  Raises:
    UserError: libtpu is not installed, or knows no such slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"compiling for {topology} needs TPU's compiler: pip install libtpu, "
      "in the version that constraints.txt names"
    )
  quiet = _NO_TPU_HERE if os.environ.get("JAX_PLATFORMS") == "cpu" else {}
  for name, value in (_ENVIRONMENT | quiet).items():
    os.environ.setdefault(name, value)
  # libtpu takes a host for a tray of 2x2 chips, unless told of a host with a chip of its own.
  alone = topology.partition(":")[2] in ("1x1", "1x1x1")
  options: dict = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
  if topology.startswith("v4:"):
    # As programs run there: both cores of a chip are one device with the chip's whole memory.
    options["chip_config_name"] = "megacore"
  if num_slices > 1:
    options["num_slices"] = num_slices
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    return list(found.devices)
  except Exception as error:  # what libtpu raises is of no narrower type
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"libtpu knows no slice {topology!r} (expected one such as v5e:4x4): {reason}"
    ) from error
