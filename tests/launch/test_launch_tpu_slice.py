"""Slices under the cloud's names, against the published tables (cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e)."""

import pytest

from slm_jax.errors import UserError
from slm_jax.launch.preflight import SLICES
from slm_jax.launch.tpu_slice import parse_slice

# Accelerator type, hosts of four chips (or one), chips a host, TPU VMs.
PUBLISHED = {
  "v4:2x2x1": ("v4-8", 1, 4, 1),
  "v4:2x2x2": ("v4-16", 2, 4, 2),
  "v4:2x2x4": ("v4-32", 4, 4, 4),
  "v4:2x4x4": ("v4-64", 8, 4, 8),
  "v4:4x4x4": ("v4-128", 16, 4, 16),
  "v4:4x4x8": ("v4-256", 32, 4, 32),
  "v4:4x8x8": ("v4-512", 64, 4, 64),
  "v4:8x8x8": ("v4-1024", 128, 4, 128),
  "v4:8x8x12": ("v4-1536", 192, 4, 192),
  "v4:8x8x16": ("v4-2048", 256, 4, 256),
  "v4:8x16x16": ("v4-4096", 512, 4, 512),
  "v5e:1x1": ("v5litepod-1", 1, 1, 1),
  "v5e:2x2": ("v5litepod-4", 1, 4, 1),
  "v5e:2x4": ("v5litepod-8", 2, 4, 1),
  "v5e:4x4": ("v5litepod-16", 4, 4, 4),
  "v5e:4x8": ("v5litepod-32", 8, 4, 8),
  "v5e:8x8": ("v5litepod-64", 16, 4, 16),
  "v5e:8x16": ("v5litepod-128", 32, 4, 32),
  "v5e:16x16": ("v5litepod-256", 64, 4, 64),
  "v5p:2x2x1": ("v5p-8", 1, 4, 1),
  "v5p:2x2x2": ("v5p-16", 2, 4, 2),
  "v5p:2x2x4": ("v5p-32", 4, 4, 4),
  "v5p:2x4x4": ("v5p-64", 8, 4, 8),
  "v5p:4x4x4": ("v5p-128", 16, 4, 16),
  "v5p:4x4x8": ("v5p-256", 32, 4, 32),
  "v5p:4x8x8": ("v5p-512", 64, 4, 64),
  "v5p:8x8x8": ("v5p-1024", 128, 4, 128),
  "v5p:8x8x16": ("v5p-2048", 256, 4, 256),
  "v5p:8x16x16": ("v5p-4096", 512, 4, 512),
  "v5p:16x16x24": ("v5p-12288", 1536, 4, 1536),
  "v6e:1x1": ("v6e-1", 1, 1, 1),
  "v6e:2x2": ("v6e-4", 1, 4, 1),
  "v6e:2x4": ("v6e-8", 2, 4, 1),
  "v6e:4x4": ("v6e-16", 4, 4, 4),
  "v6e:4x8": ("v6e-32", 8, 4, 8),
  "v6e:8x8": ("v6e-64", 16, 4, 16),
  "v6e:8x16": ("v6e-128", 32, 4, 32),
  "v6e:16x16": ("v6e-256", 64, 4, 64),
}
LABELS = {
  "v4": ("tpu-v4-podslice", "tpu-ubuntu2204-base"),
  "v5e": ("tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
  "v5p": ("tpu-v5p-slice", "v2-alpha-tpuv5"),
  "v6e": ("tpu-v6e-slice", "v2-alpha-tpuv6e"),
}


@pytest.mark.parametrize("topology", PUBLISHED)
def test_slice_has_its_published_names(topology):
  tpu = parse_slice(topology)
  found = (tpu.accelerator_type, tpu.hosts, tpu.chips_per_host, tpu.virtual_machines)
  assert found == PUBLISHED[topology]
  assert tpu.is_default_shape
  assert tpu.hosts * tpu.chips_per_host == tpu.chips
  assert (tpu.gke_accelerator, tpu.runtime_version) == LABELS[topology.partition(":")[0]]
  assert f"{tpu.chip}:{tpu.topology}" == topology


def test_every_slice_that_preflight_searches_can_be_launched():
  for chip, shapes in SLICES.items():
    for shape in shapes:
      assert f"{chip}:{shape}" in PUBLISHED


@pytest.mark.parametrize("topology", ["v4:4x4x16", "v5p:4x4x16", "v4:4x4x12"])
def test_only_the_shape_nearest_to_a_cube_goes_by_the_accelerator_type_alone(topology):
  # As many chips as 4x8x8; 4x4x12 has no other shape.
  assert parse_slice(topology).is_default_shape == (topology == "v4:4x4x12")


@pytest.mark.parametrize(
  ("topology", "said"),
  [
    ("v5e:4x2", "no such slice"),
    ("v5e:3x3", "no such slice"),
    ("v5e:32x32", "no such slice"),
    ("v6e:4x4x4", "no such slice"),
    ("v4:4x4", "no such slice"),
    ("v4:2x2x8", "multiples of 4"),
    ("v4:0x4x4", "no such slice"),
    ("v5p:8x4x4", "v5p:4x4x8"),
    ("v4:16x16x20", "4096"),
    ("v5p:16x20x24", "6144"),
    ("v5e", "expected a chip and its shape"),
    ("v5e:4x4;rm", "expected a chip and its shape"),
    ("v3:4x4", "expected a chip of"),
    ("local", "expected a chip of"),
  ],
)
def test_a_slice_that_cannot_be_rented_is_refused(topology, said):
  with pytest.raises(UserError, match=said):
    parse_slice(topology)
