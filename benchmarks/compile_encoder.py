"""Compiles a USM encoder's forward pass for a TPU slice that is not there.

  python benchmarks/compile_encoder.py --model usm_2b --topology v5e:4x4 --fsdp 16

The weights are frozen, bf16 or int8, and sharded; needs the libtpu wheel and no TPU. Prints one JSON object: what it
took, and the bytes of each chip's memory.
"""

import argparse
import dataclasses
import json
import os
import resource
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

from slm_jax import config  # noqa: E402
from slm_jax.launch.absent_slice import slice_devices  # noqa: E402
from slm_jax.launch.encoder_forward import lower_encoder  # noqa: E402
from slm_jax.launch.train_through import chip_memory  # noqa: E402
from slm_jax.training.sharding import MeshConfig, make_mesh  # noqa: E402

RECIPE = ["train.model=@SpeechEncoderRecipe()", "SpeechEncoderRecipe.config=@ConformerConfig()"]


def parse_flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="usm_2b", help="a file of gin/models")
  parser.add_argument("--topology", default="v5e:4x4")
  parser.add_argument("--fsdp", type=int, default=16)
  parser.add_argument("--tensor", type=int, default=1)
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--seconds", type=float, default=30.0)
  parser.add_argument("--weights", default="bfloat16", choices=["bfloat16", "int8"])
  return parser.parse_args()


def main() -> None:
  """Compiles; prints the JSON object."""
  flags = parse_flags()
  config.load([f"models/{flags.model}.gin"], RECIPE)
  kind = "int8" if flags.weights == "int8" else "float"
  encoder = dataclasses.replace(config.build("ConformerConfig"), dtype="bfloat16", weights=kind)
  devices = slice_devices(flags.topology)
  mesh = make_mesh(MeshConfig(fsdp=flags.fsdp, tensor=flags.tensor), devices)
  samples = round(16_000 * flags.seconds)
  start = time.monotonic()
  lowered = lower_encoder(encoder, mesh, batch_size=flags.batch_size, num_samples=samples)
  compiled = lowered.compile()
  report = {
    **vars(flags),
    "chip": devices[0].device_kind,
    "chips": len(devices),
    "seconds_taken": round(time.monotonic() - start, 1),
    "cpu_seconds": round(time.process_time(), 1),
    "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    "chip_bytes": chip_memory(compiled)._asdict(),
    "jax": jax.__version__,
  }
  print(json.dumps(report, indent=1))


if __name__ == "__main__":
  main()
