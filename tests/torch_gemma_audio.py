"""Gemma's audio towers in torch, tiny, with every weight at random."""

from typing import Any

import torch

# Buffers that are made of the config.
_CONSTANTS = ("inv_timescales", "softcap", "gradient_clipping", "q_scale")


def randomised_tower(model: Any) -> Any:
  """The tower in evaluation mode, weights and norms drawn anew; Gemma 4's bounds on activations too,
  tight ones in the first layer and, as they are before any calibration, infinite ones elsewhere."""
  generator = torch.Generator().manual_seed(0)
  for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
    if not tensor.is_floating_point() or name.endswith(_CONSTANTS):
      continue
    if name.endswith(("_min", "_max")):
      if "layers.0." in name:
        tensor.data.uniform_(0.3, 0.8, generator=generator)
        tensor.data.mul_(-1.0 if name.endswith("min") else 1.0)
      continue
    tensor.data.normal_(0.05, 0.25, generator=generator)
    if "norm" in name:
      tensor.data.add_(1.0)
  return model.eval()
