"""What a step costs at least: products, weights read, bytes sent, each against a chip's peak.

FLOPs are those of products with weights, 2 for each weight and position (padding included): forward
alone 2ND (speech encoder), forward and backward to the activations 4ND (LM), and with gradients of
the weights 6ND (adapter). Attention's own products, lookups and norms are left out. Layers that are
computed again in the backward pass cost 2ND more, which is work but no progress: it counts for the
time and not for the MFU.
"""

import dataclasses

from slm_jax.launch.abstract_run import AbstractRun
from slm_jax.launch.chips import Chip
from slm_jax.launch.collectives import BETWEEN_SLICES, Collectives
from slm_jax.launch.programs import matrix_parameters, positions, share_bytes
from slm_jax.models.slm import SLM

_PASSES = {"speech_encoder": 2, "adapter": 6}
_LM_PASSES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Bounds of one train step.

  Attributes:
    model_flops: of the whole batch, without work done twice.
    hardware_flops: with it.
    weight_bytes_read: of one chip: its share of every layer it computes, as often as it does.
    seconds: by resource, the least that one step takes.
    best_mfu: share of the chips' peak that model_flops make in the largest of `seconds`.
  """

  model_flops: float
  hardware_flops: float
  weight_bytes_read: float
  seconds: dict[str, float]
  best_mfu: float

  @property
  def step_seconds(self) -> float:
    return max(self.seconds.values())


def train_step_roofline(run: AbstractRun, chip: Chip, sent: Collectives, remat: bool) -> Roofline:
  """Bounds of the train step of `run`, whose compiled program sends `sent`."""
  met, weights = positions(run), matrix_parameters(run)
  useful = again = 0.0
  for part, count in weights.items():
    product = float(count) * met[part]
    useful += _PASSES.get(part, _LM_PASSES) * product
    in_lm_layers = part in ("encoder", "memory", "decoder")
    again += 2 * product if remat and in_lm_layers else 0.0
  chips = run.mesh.size
  # A chip computes with whole rows of weights, gathered over `fsdp`, of its part of `tensor`.
  gathered = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
  lm_reads = 3 if remat else 2
  frozen = run.frozen
  read = share_bytes(frozen.get("speech_encoder", {})) + lm_reads * share_bytes(
    frozen.get("language_model", {})
  )
  read = read * gathered + 3 * share_bytes(run.state.params)
  seconds = {
    "products": (useful + again) / chips / chip.flops,
    "memory": read / chip.memory_bandwidth,
    "interconnect": (sent.total_bytes - sent.size.get(BETWEEN_SLICES, 0)) / chip.interconnect,
  }
  return Roofline(
    model_flops=useful,
    hardware_flops=useful + again,
    weight_bytes_read=read,
    seconds=seconds,
    best_mfu=useful / chips / chip.flops / max(seconds.values()),
  )


def recomputes_layers(model: SLM) -> bool:
  """Whether the LM's backward pass computes its layers again."""
  return model.config.language_model.remat == "full"
