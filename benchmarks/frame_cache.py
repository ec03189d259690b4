"""A training step that runs the frozen speech encoder beside the same step from cached frames, in turns.

  python benchmarks/frame_cache.py --shapes mini usm_0_6b --rounds=10

`mini` is the demo: its recipe, its weights and, in its longest declared shape, noise. `usm_0_6b` is an encoder of that
shape in front of mT5-small's layers over 32,128 pieces, four frames stacked into one, random weights. A step from
cached frames includes looking them up: the audio is hashed and the frames are read from a cache on disk. Both start
from one state; each round is a step of both, and their losses are compared. Printed is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax import config
from slm_jax.batch import Batch
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.t5_config import T5Config
from slm_jax.training import setup, sharding
from slm_jax.training.compiled_steps import CompiledSteps
from slm_jax.training.config import FakeDatasetConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.frame_cache import (
  CachedFrameBatches,
  create,
  open_frame_cache,
  without_encoder,
)
from slm_jax.training.frame_encoding import FrameEncoder
from slm_jax.training.frozen_frames import FrozenFrames
from slm_jax.training.optimizer import OptimizerConfig, make_optimizer
from slm_jax.training.recipes import AdapterRecipe, Built
from slm_jax.training.step import make_train_step

SHAPES = ("mini", "usm_0_6b")


def mini() -> tuple[AdapterRecipe, FakeDatasetConfig]:
  config.load(["experiments/mini.gin"], ["MODEL_DIR='unused'"])
  run = config.build("train")
  dataset = run.train_dataset
  fake = FakeDatasetConfig(
    task_feature_lengths=dataset.task_feature_lengths,
    batch_size=dataset.batch_size,
    vocab_size=2048,
  )
  return run.model, fake


def usm_0_6b() -> tuple[AdapterRecipe, FakeDatasetConfig]:
  encoder = ConformerConfig(
    num_layers=24,
    model_dim=1024,
    num_heads=8,
    subsampling_channels=(128, 32),
    attention="chunk",
    chunk_size=200,
  )
  lm = T5Config(
    vocab_size=32_128,
    emb_dim=512,
    num_heads=6,
    head_dim=64,
    mlp_dim=1024,
    num_encoder_layers=8,
    num_decoder_layers=8,
  )
  adapter = AdapterConfig(
    num_heads=8,
    head_dim=64,
    mlp_dim=1456,
    length_reduction=LengthReductionConfig(kind="stack", factor=4),
  )
  recipe = AdapterRecipe(speech_encoder=encoder, language_model=lm, adapter=adapter)
  lengths = {"audio": 160_000, "inputs": 32, "targets": 64}
  return recipe, FakeDatasetConfig(task_feature_lengths=lengths, batch_size=4, vocab_size=32_128)


def with_weights(built: Built, batch: Batch) -> Built:
  """Random ones for bases that are shapes."""
  if built.loaded:
    return built
  init = jax.jit(lambda rng: nn.unbox(built.objective.init(rng, batch)))
  weights = jax.tree.map(jnp.asarray, init(jax.random.key(0)))
  return dataclasses.replace(built, loaded={k: v for k, v in weights.items() if k != "adapter"})


class Side:
  """One of the two ways to train."""

  def __init__(self, built: Built, batches: Any, batch_size: int, mesh):
    self.batches, self.batch_size, self.mesh = batches, batch_size, mesh
    optimizer = make_optimizer(
      OptimizerConfig(learning_rate=1e-4, warmup_steps=0, decay="constant"), total_steps=1000
    )
    first = Batch.from_dict(next(batches))
    prepared = setup.prepare(built, first, optimizer, mesh, seed=0)
    self.state, self.frozen = prepared.state, prepared.frozen
    step = make_train_step(built.objective, optimizer)
    self.steps = CompiledSteps(step, self.state, max_shapes=1, report=lambda text: None)

  def step(self) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    batch = sharding.shard_batch(Batch.from_dict(next(self.batches)), self.mesh, self.batch_size)
    self.state, metrics = self.steps(self.state, self.frozen, batch)
    loss = float(metrics["loss"])
    return {
      "loss": loss,
      "wall": time.perf_counter() - wall,
      "cpu": time.process_time() - cpu,
    }


def measure(shape: str, rounds: int, folder: str) -> dict[str, Any]:
  """Steps of both in turns; the first of each, which compiles, is not counted."""
  recipe, dataset = {"mini": mini, "usm_0_6b": usm_0_6b}[shape]()
  mesh = sharding.make_mesh(sharding.MeshConfig())
  first = Batch.from_dict(next(FakeBatches(dataset)))
  built = with_weights(recipe.build(), first)
  frames = FrozenFrames(recipe, built, mesh)
  source = FakeBatches(dataset)
  samples = dataset.task_feature_lengths["audio"]
  encoder = FrameEncoder(
    frames,
    create(folder, frames),
    sample_lengths=(samples,),
    batch_size=dataset.batch_size,
  )
  for _ in range(rounds + 2):
    arrays = next(source)
    encoder.add(x[:n] for x, n in zip(arrays["audio"], arrays["audio_lengths"], strict=True))
  encoder.close()
  del frames, encoder
  cache = open_frame_cache(folder, recipe, built, mesh)
  cached_batches = CachedFrameBatches(FakeBatches(dataset), cache, built)
  heard = Side(built, FakeBatches(dataset), dataset.batch_size, mesh)
  cached = Side(without_encoder(built), cached_batches, dataset.batch_size, mesh)
  turns = [(heard.step(), cached.step()) for _ in range(rounds + 1)][1:]
  found: dict[str, Any] = {
    f"{name}_seconds_{kind}": statistics.median(turn[side][kind] for turn in turns)
    for side, name in enumerate(("heard", "cached"))
    for kind in ("wall", "cpu")
  }
  differences = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in turns]
  size = sum(path.stat().st_size for path in Path(folder).rglob("*.array_record"))
  return found | {
    "times_faster": found["heard_seconds_wall"] / found["cached_seconds_wall"],
    "times_fewer_cpu_seconds": found["heard_seconds_cpu"] / found["cached_seconds_cpu"],
    "largest_relative_difference_of_losses": max(differences),
    "cache_kib_per_utterance": size / 1024 / ((rounds + 2) * dataset.batch_size),
    "rounds": rounds,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
  parser.add_argument("--rounds", type=int, default=10)
  flags = parser.parse_args()
  found = {}
  for shape in flags.shapes:
    with tempfile.TemporaryDirectory() as folder:
      found[shape] = measure(shape, flags.rounds, folder)
  print(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
