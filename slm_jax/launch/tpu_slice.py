"""TPU slices under the names that Google Cloud gives them.

`v5e:4x4`, as elsewhere in the project, is `v5litepod-16` to TPU VMs and to xpk, and an accelerator
and a topology in the labels of GKE's nodes. Sources: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e
and /runtimes, cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import dataclasses
import math
import re

from slm_jax.errors import UserError
from slm_jax.launch.chips import chip_of

# In place of a slice: the devices at hand.
LOCAL = "local"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Names:
  """One kind of chip in the cloud.

  Attributes:
    prefix: of accelerator types.
    cores: TensorCores of a chip that accelerator types count: v4-8 has four chips, v5litepod-8 eight.
    gke: value of the node label cloud.google.com/gke-tpu-accelerator.
    runtime: software of TPU VMs that is meant for JAX.
    largest: chips of the largest slice.
  """

  prefix: str
  cores: int
  gke: str
  runtime: str
  largest: int


_NAMES = {
  "v4": _Names(
    prefix="v4", cores=2, gke="tpu-v4-podslice", runtime="tpu-ubuntu2204-base", largest=4096
  ),
  "v5e": _Names(
    prefix="v5litepod",
    cores=1,
    gke="tpu-v5-lite-podslice",
    runtime="v2-alpha-tpuv5-lite",
    largest=256,
  ),
  "v5p": _Names(prefix="v5p", cores=2, gke="tpu-v5p-slice", runtime="v2-alpha-tpuv5", largest=6144),
  "v6e": _Names(prefix="v6e", cores=1, gke="tpu-v6e-slice", runtime="v2-alpha-tpuv6e", largest=256),
}
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Slices of v4 and v5p smaller than the cube of 64 chips that all larger ones are made of.
_PARTS = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuSlice:
  """One slice: `chip` such as "v5e", `shape` such as (4, 4) in chips. Made by `parse_slice`."""

  chip: str
  shape: tuple[int, ...]

  def __post_init__(self):
    names, shown = _NAMES[self.chip], f"{self.chip}:{self.topology}"
    if self.chip in ("v5e", "v6e"):
      if self.shape not in _FLAT:
        known = ", ".join("x".join(map(str, shape)) for shape in _FLAT)
        raise ValueError(f"{shown}: no such slice; {self.chip} has {known}")
    elif self.shape not in _PARTS:
      small = ", ".join("x".join(map(str, shape)) for shape in _PARTS)
      if len(self.shape) != 3 or any(size % _CUBE or not size for size in self.shape):
        raise ValueError(
          f"{shown}: no such slice; {self.chip} has {small} and multiples of {_CUBE} in each of three dimensions"
        )
      if self.shape != tuple(sorted(self.shape)):
        ordered = "x".join(map(str, sorted(self.shape)))
        raise ValueError(f"{shown}: sizes are given from small to large, {self.chip}:{ordered}")
    if self.chips > names.largest:
      raise ValueError(
        f"{shown}: {self.chips} chips; the largest slice of {self.chip} has {names.largest}"
      )

  @property
  def topology(self) -> str:
    """Such as "4x4": the node label cloud.google.com/gke-tpu-topology."""
    return "x".join(map(str, self.shape))

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  @property
  def accelerator_type(self) -> str:
    """Such as "v5litepod-16" or, counting two cores a chip, "v4-64"."""
    names = _NAMES[self.chip]
    return f"{names.prefix}-{self.chips * names.cores}"

  @property
  def is_default_shape(self) -> bool:
    """Whether the accelerator type alone means this shape: of those with as many chips, the one nearest to a cube."""
    if self.chip in ("v5e", "v6e") or self.shape in _PARTS:
      return True
    return self.shape == min(_boxes(self.chips // _CUBE**3), key=sum)

  @property
  def gke_accelerator(self) -> str:
    return _NAMES[self.chip].gke

  @property
  def chips_per_host(self) -> int:
    """Chips of a GKE node. A slice of 2x4 is taken as two nodes of 4: multislice knows no other."""
    return min(4, self.chips)

  @property
  def hosts(self) -> int:
    """Nodes of a slice on GKE, each of which runs one process."""
    return self.chips // self.chips_per_host

  @property
  def virtual_machines(self) -> int:
    """TPU VMs of a slice: as GKE's nodes, but eight chips of v5e or v6e are one machine."""
    return 1 if self.shape == (2, 4) else self.hosts

  @property
  def runtime_version(self) -> str:
    return _NAMES[self.chip].runtime


def _boxes(cubes: int) -> list[tuple[int, ...]]:
  """Shapes of that many cubes, sizes from small to large."""
  found = []
  for x in range(1, cubes + 1):
    for y in range(x, cubes // x + 1):
      if cubes % (x * y) == 0 and cubes // (x * y) >= y:
        found.append((_CUBE * x, _CUBE * y, _CUBE * (cubes // (x * y))))
  return found


def parse_slice(topology: str) -> TpuSlice:
  """The slice of a text such as "v5e:4x4"; raises UserError for one that cannot be rented."""
  chip, _, shape = topology.partition(":")
  chip_of(topology)
  if not re.fullmatch(r"[0-9]{1,4}(x[0-9]{1,4}){1,2}", shape):
    raise UserError(f"topology {topology!r}: expected a chip and its shape, as in v5e:4x4")
  try:
    return TpuSlice(chip=chip, shape=tuple(int(size) for size in shape.split("x")))
  except ValueError as error:
    raise UserError(f"topology {error}") from error
