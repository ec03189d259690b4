"""Compiles mT5-XXL's forward pass and its backward pass to the embeddings for a TPU slice that is not there.

  python benchmarks/compile_xxl.py --topology v5e:4x4 --fsdp 4 --tensor 4

The weights are frozen, bf16 or int8, and sharded; needs the libtpu wheel and no TPU. Prints one JSON object: what it
took, and the bytes of each chip's memory. The limits are 3 minutes on 2 cores and 6 GiB.
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
from slm_jax.launch.train_through import (  # noqa: E402
  TrainThroughShape,
  chip_memory,
  lower_train_through,
)
from slm_jax.training.sharding import MeshConfig, make_mesh  # noqa: E402


def parse_flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="mt5_xxl", help="a file of gin/models/t5")
  parser.add_argument("--topology", default="v5e:4x4")
  parser.add_argument("--fsdp", type=int, default=4)
  parser.add_argument("--tensor", type=int, default=4)
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--source_length", type=int, default=512)
  parser.add_argument("--target_length", type=int, default=64)
  parser.add_argument("--weights", default="bfloat16", choices=["bfloat16", "int8"])
  return parser.parse_args()


def main() -> None:
  """Compiles; prints the JSON object."""
  flags = parse_flags()
  tokenizer = "LanguageModelRecipe.tokenizer=''"  # none is needed, nothing is trained from scratch
  config.load([f"models/t5/{flags.model}.gin"], ["train.model=@LanguageModelRecipe()", tokenizer])
  recipe = config.build("LanguageModelRecipe")
  devices = slice_devices(flags.topology)
  mesh = make_mesh(MeshConfig(fsdp=flags.fsdp, tensor=flags.tensor), devices)
  shape = TrainThroughShape(
    batch_size=flags.batch_size,
    source_length=flags.source_length,
    target_length=flags.target_length,
    loss_chunk=recipe.loss_chunk,
  )
  start = time.monotonic()
  kind = "int8" if flags.weights == "int8" else "float"
  lowered = lower_train_through(dataclasses.replace(recipe.config, weights=kind), shape, mesh)
  traced = time.monotonic()
  compiled = lowered.compile()
  done = time.monotonic()
  report = {
    **vars(flags),
    "loss_chunk": recipe.loss_chunk,
    "chip": devices[0].device_kind,
    "chips": len(devices),
    "mesh": dict(mesh.shape),
    "trace_seconds": round(traced - start, 1),
    "compile_seconds": round(done - traced, 1),
    "cpu_seconds": round(time.process_time(), 1),
    "cores": os.cpu_count(),
    "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    "chip_bytes": chip_memory(compiled)._asdict(),
    "jax": jax.__version__,
  }
  print(json.dumps(report, indent=1))


if __name__ == "__main__":
  main()
