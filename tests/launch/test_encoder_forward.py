"""An encoder compiles ahead of time for a slice: scanned, sharded, int8 too."""

import dataclasses
import math
import re

import pytest
from jax.sharding import Mesh

from slm_jax.launch.absent_slice import slice_devices
from slm_jax.launch.encoder_forward import lower_encoder
from slm_jax.launch.train_through import chip_memory
from slm_jax.models.conformer import ConformerConfig
from slm_jax.training.sharding import MeshConfig, make_mesh

CONFIG = ConformerConfig(
  num_layers=6, model_dim=256, num_heads=2, num_mel_bins=16, subsampling_channels=(8, 8),
  vocab_size=16, attention="chunk", chunk_size=25, dtype="bfloat16",
)  # fmt: skip


@pytest.fixture(scope="module")
def mesh() -> Mesh:
  return make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), slice_devices("v5e:2x2"))


def lower(config, mesh):
  return lower_encoder(config, mesh, batch_size=4, num_samples=64_000)


def test_layers_are_scanned(mesh):
  texts = [
    lower(dataclasses.replace(CONFIG, num_layers=layers), mesh).as_text() for layers in (2, 6)
  ]
  operations = [text.count(" = stablehlo.") for text in texts]
  assert operations[0] == operations[1] > 100


def test_each_chip_holds_its_share_of_the_weights(mesh):
  sizes = {}
  for weights in ("float", "int8"):
    compiled = lower(dataclasses.replace(CONFIG, weights=weights), mesh).compile()
    sizes[weights] = chip_memory(compiled)
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", compiled.as_text())
    gathered = [math.prod(map(int, shape.split(","))) for shape in shapes]
    # No more than one layer's largest kernel is ever gathered, never a stack.
    assert gathered and max(gathered) <= 256 * 1024
  kernels = 6 * (4 * 256 * 1024 + 8 * 256 * 256)
  saved = sizes["float"].arguments - sizes["int8"].arguments
  assert 0.8 * kernels / 4 < saved < kernels / 4
