"""TPU chips as their maker publishes them (cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e)."""

import dataclasses

from slm_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One kind of chip.

  Attributes:
    name: as in a topology, "v5e" of "v5e:4x4".
    memory: bytes of high-bandwidth memory that programs may use. The compiler keeps a part of what
      is published for itself; this is the limit that it reports.
    flops: peak of bf16 products, per second.
    memory_bandwidth: bytes per second.
    interconnect: bytes per second that a chip can send to its neighbours and, at the same time,
      receive: half of the published figure, which adds both directions.
  """

  name: str
  memory: int
  flops: float
  memory_bandwidth: float
  interconnect: float


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      memory=round(30.75 * GIB),
      flops=275e12,
      memory_bandwidth=1200e9,
      interconnect=150e9,
    ),
    Chip(
      name="v5e",
      memory=round(15.75 * GIB),
      flops=197e12,
      memory_bandwidth=819e9,
      interconnect=200e9,
    ),
    Chip(
      name="v5p",
      memory=round(95.74 * GIB),
      flops=459e12,
      memory_bandwidth=2765e9,
      interconnect=600e9,
    ),
    Chip(
      name="v6e",
      memory=round(31.25 * GIB),
      flops=918e12,
      memory_bandwidth=1638e9,
      interconnect=400e9,
    ),
  )
}


def chip_of(topology: str) -> Chip:
  """The chip of a slice such as "v5e:4x4"; raises UserError for one that is not in the table."""
  name = topology.partition(":")[0]
  if name not in CHIPS:
    raise UserError(
      f"topology {topology!r}: expected a chip of {sorted(CHIPS)} and a shape, as in v5e:4x4"
    )
  return CHIPS[name]
