"""Our T5 family beside Transformers on PyTorch: the same weights and the same work on the same machine.

  python benchmarks/lm.py --output=lm.json

Two processes hold one random mT5 in fp32 each and work in turns, so that a noisy machine is noisy for both. Measured:

* `train_through`: loss, and its gradient with respect to the input embeddings; the weights are frozen.
* `generate`: greedy decoding of a fixed number of tokens.

Printed is JSON: medians of wall and CPU seconds, what they amount to, and our speed relative to the other's. Both must
find the same loss and gradient and the same tokens, or the comparison is refused. Needs the `test` extra (PyTorch).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from turns import serve, take_turns

SHAPES = {
  # arXiv:2010.11934; google/mt5-small and google/mt5-base
  "mt5_small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
  "mt5_base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}
VOCAB_SIZE = 250_112
MATMUL_SIZE = 2048


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--shape", choices=SHAPES, default="mt5_small")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--source_length", type=int, default=128)
  parser.add_argument("--target_length", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="the JSON goes here too")
  parser.add_argument("--worker", choices=("ours", "transformers"), help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def work(flags: argparse.Namespace) -> dict[str, np.ndarray]:
  """The inputs of both tasks: rows of unequal length, targets without padding."""
  rng = np.random.default_rng(0)
  batch, source = flags.batch_size, flags.source_length
  lengths = np.linspace(source // 2, source, batch).astype(int)
  d_model = SHAPES[flags.shape]["d_model"]
  return {
    "tokens": rng.integers(2, VOCAB_SIZE, (batch, source), dtype=np.int32),
    "embeddings": rng.normal(size=(batch, source, d_model)).astype(np.float32),
    "mask": np.arange(source) < lengths[:, None],
    "targets": rng.integers(2, VOCAB_SIZE, (batch, flags.target_length), dtype=np.int32),
  }


class Ours:
  """slm_jax: the functions of the train step and of `LanguageModel.generate`."""

  def __init__(self, flags: argparse.Namespace):
    import jax
    import jax.numpy as jnp

    from slm_jax.interop import load_language_model
    from slm_jax.models.t5 import T5
    from slm_jax.training.losses import vocabulary_cross_entropy

    self.model = load_language_model(flags.folder)
    self.inputs = work(flags)
    self.length = flags.target_length
    t5 = T5(self.model.config)

    def loss(embeddings, params, mask, targets):
      memory = t5.apply({"params": params}, embeddings, mask, method="encode")
      shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
      hidden = t5.apply({"params": params}, memory, mask, shifted, method="decode")
      projected: Any = t5.apply({"params": params}, hidden, method="output_projection")
      hidden, kernel = projected
      weights = jnp.ones(targets.shape)
      return vocabulary_cross_entropy(hidden, kernel, targets, weights)[0] / weights.sum()

    self.step = jax.jit(jax.value_and_grad(loss))
    self.params = jax.device_put(self.model.params)
    self.multiply = jax.jit(jnp.matmul)

  def train_through(self) -> dict[str, np.ndarray]:
    inputs = self.inputs
    loss, grad = self.step(inputs["embeddings"], self.params, inputs["mask"], inputs["targets"])
    return {"loss": np.asarray(loss), "gradient": np.asarray(grad)}

  def generate(self) -> dict[str, np.ndarray]:
    result = self.model.generate(
      tokens=self.inputs["tokens"],  # pyright: ignore[reportArgumentType]
      mask=self.inputs["mask"],  # pyright: ignore[reportArgumentType]
      max_new_tokens=self.length,
      min_new_tokens=self.length,
    )
    return {"ids": np.asarray(result.ids)}

  def matmul(self, matrix: np.ndarray) -> None:
    self.multiply(matrix, matrix).block_until_ready()


class Transformers:
  """Hugging Face Transformers on PyTorch, in its defaults."""

  def __init__(self, flags: argparse.Namespace):
    import torch
    from transformers import MT5ForConditionalGeneration

    self.torch = torch
    self.model: Any = MT5ForConditionalGeneration.from_pretrained(flags.folder).eval()
    self.model.requires_grad_(False)
    self.inputs = {name: torch.tensor(array) for name, array in work(flags).items()}
    self.length = flags.target_length

  def train_through(self) -> dict[str, np.ndarray]:
    embeddings = self.inputs["embeddings"].clone().requires_grad_(True)
    loss = self.model(
      inputs_embeds=embeddings,
      attention_mask=self.inputs["mask"].long(),
      labels=self.inputs["targets"].long(),
    ).loss
    loss.backward()
    return {"loss": loss.detach().numpy(), "gradient": embeddings.grad.numpy()}  # pyright: ignore

  def generate(self) -> dict[str, np.ndarray]:
    ids = self.model.generate(
      self.inputs["tokens"].long(),
      attention_mask=self.inputs["mask"].long(),
      max_new_tokens=self.length,
      min_new_tokens=self.length,
      do_sample=False,
      num_beams=1,
    )
    return {"ids": ids[:, 1:].numpy()}  # without the start token

  def matmul(self, matrix: np.ndarray) -> None:
    tensor = self.torch.from_numpy(matrix)
    self.torch.matmul(tensor, tensor)


def work_in_turn(flags: argparse.Namespace) -> None:
  """A worker's process."""
  worker = {"ours": Ours, "transformers": Transformers}[flags.worker](flags)
  matrix = np.random.default_rng(1).normal(size=(MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32)
  tasks = {
    "train_through": worker.train_through,
    "generate": worker.generate,
    "matmul": lambda: worker.matmul(matrix),
  }
  serve(tasks, Path(flags.folder), flags.worker)


def make_weights(flags: argparse.Namespace) -> None:
  """A folder in the Hugging Face layout; random weights of the size that T5's initialisation has."""
  from transformers import MT5Config, MT5ForConditionalGeneration, set_seed

  set_seed(0)
  shape = SHAPES[flags.shape]
  config = MT5Config.from_dict(
    {
      **shape,
      "vocab_size": VOCAB_SIZE,
      "num_decoder_layers": shape["num_layers"],
      "dropout_rate": 0.0,
    }
  )
  MT5ForConditionalGeneration(config).save_pretrained(flags.folder)


def check_same(folder: Path) -> dict[str, float]:
  """Largest differences between the two results; raises SystemExit if they are not the same work."""

  def results(task: str) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / f"{name}-{task}.npz")) for name in ("ours", "transformers")]

  ours, theirs = results("train_through")
  loss = float(abs(ours["loss"] - theirs["loss"]))
  scale = float(abs(theirs["gradient"]).max())
  gradient = float(abs(ours["gradient"] - theirs["gradient"]).max() / scale)
  ours, theirs = results("generate")
  tokens = float((ours["ids"] == theirs["ids"]).mean())
  # Random weights leave many near ties, so that the last bits may decide on a token and all after it.
  if loss > 1e-4 or gradient > 1e-3 or tokens < 0.9:
    raise SystemExit(f"not the same work: loss off by {loss}, gradient by {gradient}, {tokens=}")
  return {
    "loss_difference": loss,
    "gradient_relative_difference": gradient,
    "equal_tokens": tokens,
  }


def compare(flags: argparse.Namespace) -> dict:
  """Runs both workers in turns; returns the report."""
  commands = {
    name: [sys.executable, __file__, "--worker", name, *sys.argv[1:], "--folder", flags.folder]
    for name in ("ours", "transformers")
  }
  times = take_turns(commands, ("matmul", "train_through", "generate"), flags.rounds)
  return report(flags, times)


def report(flags: argparse.Namespace, times: dict) -> dict:
  shape = SHAPES[flags.shape]
  tokens = flags.batch_size * flags.target_length
  # Forward, and backward to the activations: 2 FLOPs each for every weight and token (embedding lookups are free).
  inner = shape["num_heads"] * shape["d_kv"]
  ffn = 3 * shape["d_model"] * shape["d_ff"]
  encoder = shape["num_layers"] * (4 * shape["d_model"] * inner + ffn)
  decoder = shape["num_layers"] * (6 * shape["d_model"] * inner + ffn)
  memory = shape["num_layers"] * 2 * shape["d_model"] * inner  # cross-attention's keys and values
  head = shape["d_model"] * VOCAB_SIZE
  source = flags.batch_size * flags.source_length
  flops = 4 * (source * (encoder + memory) + tokens * (decoder + head))
  found: dict[str, Any] = {
    "settings": {**vars(flags), "vocab_size": VOCAB_SIZE, "dtype": "float32"},
    "same_work": check_same(Path(flags.folder)),
  }
  for task, workers in times.items():
    found[task] = {}
    for name, runs in workers.items():
      wall = statistics.median(run["wall"] for run in runs)
      found[task][name] = {
        "wall_seconds": round(wall, 4),
        "cpu_seconds": round(statistics.median(run["cpu"] for run in runs), 4),
        "peak_rss_mib": round(max(run["peak_rss_mib"] for run in runs)),
      }
      if task == "generate":
        found[task][name]["tokens_per_second"] = round(tokens / wall, 1)
      else:
        work_flops = flops if task == "train_through" else 2 * MATMUL_SIZE**3
        found[task][name]["gflop_per_second"] = round(work_flops / wall / 1e9, 1)
    ours, theirs = (found[task][name]["wall_seconds"] for name in ("ours", "transformers"))
    # Of each round, so that the machine's mood cancels; the median of the ratios.
    ratios = [b["wall"] / a["wall"] for a, b in zip(*workers.values(), strict=True)]
    found[task]["times_faster"] = round(statistics.median(ratios), 2)
  return found


def main() -> None:
  flags = parse(sys.argv[1:])
  if flags.worker:
    work_in_turn(flags)
    return
  with tempfile.TemporaryDirectory() as folder:
    flags.folder = folder
    make_weights(flags)
    found = compare(flags)
  found["settings"] = {
    k: v for k, v in found["settings"].items() if k not in ("folder", "worker", "output")
  }
  text = json.dumps(found, indent=2)
  print(text)
  if flags.output:
    Path(flags.output).write_text(text + "\n")


if __name__ == "__main__":
  main()
