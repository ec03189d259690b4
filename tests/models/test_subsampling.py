"""Subsampling: the same convolution as PyTorch's, its centres, its masks."""

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn

from slm_jax.models.subsampling import StridedConv, Subsampling


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)])
def test_strided_conv_matches_torch(channels, size):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, channels)).astype(np.float32)
  conv = StridedConv(5, "float32")
  params = nn.unbox(conv.init(jax.random.key(0), x))
  params["params"]["bias"] = rng.normal(size=5).astype(np.float32)
  weight = torch.tensor(np.asarray(params["params"]["kernel"])).permute(3, 2, 0, 1)
  expected = torch.nn.functional.conv2d(
    torch.tensor(x).permute(0, 3, 1, 2),
    weight,
    torch.tensor(params["params"]["bias"]),
    stride=2,
    padding=1,
  ).permute(0, 2, 3, 1)
  np.testing.assert_allclose(conv.apply(params, x), expected.numpy(), atol=1e-5)


def test_masks_and_padding():
  rng = np.random.default_rng(0)
  lengths = np.array([[17], [16], [5], [4], [0]])
  mask = np.arange(17) < lengths
  x = rng.normal(size=(5, 17, 8)).astype(np.float32)
  module = Subsampling((3, 4), 6, "float32")
  params = nn.unbox(module.init(jax.random.key(0), x, mask))
  frames, out_mask = module.apply(params, x, mask)
  assert frames.shape == (5, 5, 6)
  assert out_mask.sum(axis=1).tolist() == [5, 4, 2, 1, 0]
  loud, _ = module.apply(params, np.where(mask[..., None], x, 1e3), mask)
  np.testing.assert_array_equal(frames, loud)
  assert not np.asarray(frames)[~np.asarray(out_mask)].any()
  # A shorter array holds the same frames: nothing depends on how much padding there is.
  short, _ = module.apply(params, x[2:4, :5], mask[2:4, :5])
  np.testing.assert_allclose(short, frames[2:4, :2], atol=1e-6)
