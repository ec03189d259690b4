"""One training step of the whole SLM beside the same step in PyTorch: equal shapes and frozen weights, in turns.

  python benchmarks/slm.py --output=slm.json

A w2v-BERT-like encoder (12 x 512, frozen, forward only), four frames stacked into one, an adapter of two layers
(trained with AdamW), and an LM of mT5-small's layers over 32,128 pieces (frozen, differentiated through); fp32, eight
rows of 7.2 to 10 s, 32 prompt and 64 target tokens, random weights, nothing cached between steps. Three processes take
turns:

* `ours`: the run's own step, from the waveform on;
* `eager` and `compiled`: Transformers' classes on PyTorch, as they are or through `torch.compile`, from features on.

The adapters are not the same function: ours turns queries and keys and gates its FFN, PyTorch's is its own
`TransformerEncoder` with an FFN of 2048. Ours is made as wide as it takes to have no fewer weights. What both share is
checked, or the comparison refused: the encoder's frames, the LM's loss and its gradient to what it reads, and how many
weights each part has.

FLOPs are those of products with weights, 2 for each weight and position it meets, once forward through the encoder,
twice through the LM, three times through the adapter; attention's own are not counted. Printed is JSON. Needs the
`test` extra (PyTorch).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from turns import Times, serve, take_turns

PROGRAMS = ("ours", "eager", "compiled")
MATMUL_SIZE = 2048
STACK = 4
ENCODER = {
  "hidden_size": 512,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "intermediate_size": 2048,
}
LM = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
VOCAB_SIZE = 32_128
ADAPTER_LAYERS, ADAPTER_HEADS = 2, 8
# Of PyTorch's adapter; and of ours, whose FFN has three matrices and which has no linear layer at the end.
TORCH_FFN, OUR_FFN = 2048, 1456
FEATURES, PROMPT, TARGET = 500, 32, 64
LEARNING_RATE = 1e-3
TOLERANCE = {"frames": 2e-3, "lm_loss": 1e-4, "lm_gradient": 1e-3}


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  parser.add_argument("--output", help="the JSON goes here too")
  parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def samples_of(frames: np.ndarray | int) -> Any:
  """Samples at 16 kHz of which the frontend makes that many pairs of frames: windows of 25 ms, every 10 ms."""
  return (2 * frames - 1) * 160 + 400


def work(batch_size: int) -> dict[str, np.ndarray]:
  """Inputs of the step, and of the LM alone."""
  rng = np.random.default_rng(0)
  frames = FEATURES - 20 * (np.arange(batch_size) % 8)
  lengths = samples_of(frames).astype(np.int32)
  samples = samples_of(FEATURES)
  audio = rng.normal(size=(batch_size, samples)) * 3000
  positions = FEATURES // STACK + PROMPT
  tokens = rng.integers(3, VOCAB_SIZE, (batch_size, PROMPT + TARGET)).astype(np.int32)
  return {
    "audio": np.where(np.arange(samples) < lengths[:, None], audio, 0).astype(np.int16),
    "lengths": lengths,
    "prompt": tokens[:, :PROMPT],
    "targets": tokens[:, PROMPT:],
    "embeddings": rng.normal(size=(batch_size, positions, LM["d_model"])).astype(np.float32),
    "mask": np.arange(positions) < (frames // STACK + PROMPT)[:, None],
  }


class Ours:
  """slm_jax: recipe, preparation and step of a training run."""

  def __init__(self, flags: argparse.Namespace):
    import jax
    import jax.numpy as jnp

    from slm_jax.batch import Batch
    from slm_jax.models.adapter import AdapterConfig
    from slm_jax.models.length_reduction import LengthReductionConfig
    from slm_jax.training import setup, sharding
    from slm_jax.training.compiled_steps import CompiledSteps
    from slm_jax.training.optimizer import OptimizerConfig, make_optimizer
    from slm_jax.training.recipes import AdapterRecipe
    from slm_jax.training.step import make_train_step

    inputs = work(flags.batch_size)
    recipe = AdapterRecipe(
      speech_encoder=f"{flags.folder}/encoder",
      language_model=f"{flags.folder}/lm",
      # Half of the temporaries, and no slower: what elementwise operations made is made again.
      language_model_remat="dots",
      adapter=AdapterConfig(
        num_layers=ADAPTER_LAYERS,
        num_heads=ADAPTER_HEADS,
        head_dim=LM["d_model"] // ADAPTER_HEADS,
        mlp_dim=OUR_FFN,
        length_reduction=LengthReductionConfig(kind="stack", factor=STACK),
      ),
    )
    built = recipe.build()
    optimizer = make_optimizer(
      OptimizerConfig(
        learning_rate=LEARNING_RATE, warmup_steps=0, decay="constant", b2=0.999, weight_decay=0.01
      ),
      total_steps=1000,
    )
    batch = Batch(
      audio=inputs["audio"],
      audio_lengths=inputs["lengths"],
      encoder_input_tokens=inputs["prompt"],
      decoder_input_tokens=np.pad(inputs["targets"][:, :-1], ((0, 0), (1, 0))),
      decoder_target_tokens=inputs["targets"],
      decoder_loss_weights=np.ones(inputs["targets"].shape, np.float32),
    )
    mesh = sharding.make_mesh(sharding.MeshConfig())
    prepared = setup.prepare(built, batch, optimizer, mesh, seed=0)
    self.model: Any = built.objective
    self.state, self.frozen = prepared.state, prepared.frozen
    self.batch = sharding.shard_batch(batch, mesh, flags.batch_size)
    self.train_step = CompiledSteps(
      make_train_step(built.objective, optimizer),
      self.state,
      max_shapes=1,
      report=lambda text: print(text, file=sys.stderr),
    )
    self.inputs = inputs
    self.multiply = jax.jit(jnp.matmul)

  def step(self) -> dict[str, np.ndarray]:
    self.state, metrics = self.train_step(self.state, self.frozen, self.batch)
    return {"loss": np.asarray(metrics["loss"])}

  def matmul(self, matrix: np.ndarray) -> None:
    self.multiply(matrix, matrix).block_until_ready()

  def check(self) -> dict[str, np.ndarray]:
    """What both sides share, computed alone."""
    import jax

    from slm_jax.launch.train_through import LanguageBatch, train_through
    from slm_jax.models.speech_encoders.families import make_speech_encoder

    config, inputs = self.model.model.config, self.inputs
    encoder = make_speech_encoder(config.speech_encoder)
    params = {"params": self.frozen["speech_encoder"]}
    encoded: Any = jax.jit(encoder.apply)(params, inputs["audio"], inputs["lengths"])
    shifted = np.pad(inputs["targets"][:, :-1], ((0, 0), (1, 0)))
    weights = np.ones(shifted.shape, np.float32)
    language = LanguageBatch(inputs["mask"], shifted, inputs["targets"], weights)
    loss, gradient = jax.jit(train_through(config.language_model))(
      inputs["embeddings"], self.frozen["language_model"], language
    )
    return {
      "frames": np.asarray(encoded.frames),
      "lm_loss": np.asarray(loss / weights.sum()),
      "lm_gradient": np.asarray(gradient / weights.sum()),
    } | {
      f"weights_{part}": np.asarray(sum(x.size for x in jax.tree.leaves(tree)))
      for part, tree in {**self.frozen, **self.state.params}.items()
    }


def torch_adapter() -> Any:
  """Linear layer over stacked frames, pre-norm transformer layers, norm, linear layer."""
  import torch
  from torch import nn

  width = LM["d_model"]

  class Adapter(nn.Module):
    def __init__(self):
      super().__init__()
      self.projection = nn.Linear(STACK * ENCODER["hidden_size"], width)
      layer = nn.TransformerEncoderLayer(
        width,
        ADAPTER_HEADS,
        TORCH_FFN,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
      )
      self.layers = nn.TransformerEncoder(
        layer, ADAPTER_LAYERS, norm=nn.LayerNorm(width), enable_nested_tensor=False
      )
      self.output = nn.Linear(width, width)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, Any]:
      stacked = frames.unflatten(1, (-1, STACK)).flatten(2)
      mask = mask[:, ::STACK]
      adapted = self.layers(self.projection(stacked), src_key_padding_mask=mask == 0)
      return self.output(adapted), mask

  return Adapter()


class Reference:
  """Transformers on PyTorch; attention by PyTorch's fused kernel where Transformers has it."""

  def __init__(self, flags: argparse.Namespace):
    os.environ["OMP_NUM_THREADS"] = str(flags.threads)
    # Threads that wait without spinning: CPU seconds then are those of work.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    import torch
    from safetensors.torch import load_file
    from transformers import (
      MT5ForConditionalGeneration,
      SeamlessM4TFeatureExtractor,
      Wav2Vec2BertModel,
    )

    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    self.torch = torch
    self.encoder: Any = Wav2Vec2BertModel.from_pretrained(f"{flags.folder}/encoder")
    self.lm: Any = MT5ForConditionalGeneration.from_pretrained(f"{flags.folder}/lm")
    # Transformers ties every mT5's output to its embedding; mT5's own is a matrix by itself.
    head = load_file(f"{flags.folder}/lm/model.safetensors")["lm_head.weight"]
    self.lm.lm_head.weight = torch.nn.Parameter(head)
    for frozen in (self.encoder, self.lm):
      frozen.requires_grad_(False).eval()
    self.adapter = torch_adapter()
    self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=LEARNING_RATE)
    inputs = work(flags.batch_size)
    extractor: Any = SeamlessM4TFeatureExtractor.from_pretrained(f"{flags.folder}/encoder")
    rows = [
      row[:n].astype(np.float32) / 32768
      for row, n in zip(inputs["audio"], inputs["lengths"], strict=True)
    ]
    found = extractor(rows, sampling_rate=16_000, return_tensors="pt")
    self.features, self.feature_mask = found["input_features"], found["attention_mask"].long()
    assert tuple(self.features.shape[1:]) == (FEATURES, 160), self.features.shape
    self.prompt, self.targets = (
      torch.from_numpy(inputs[name]).long() for name in ("prompt", "targets")
    )
    self.inputs = inputs
    compiled = flags.worker == "compiled"
    self.encode = torch.compile(self._encode, dynamic=False) if compiled else self._encode
    self.loss = torch.compile(self._loss, dynamic=False) if compiled else self._loss

  def _encode(self, features: Any, mask: Any) -> Any:
    with self.torch.no_grad():
      return self.encoder(input_features=features, attention_mask=mask).last_hidden_state

  def _loss(self, frames: Any, mask: Any, prompt: Any, targets: Any) -> Any:
    speech, speech_mask = self.adapter(frames, mask)
    embeddings = self.torch.cat([speech, self.lm.shared(prompt)], dim=1)
    whole_mask = self.torch.cat([speech_mask, self.torch.ones_like(prompt)], dim=1)
    return self.lm(
      inputs_embeds=embeddings, attention_mask=whole_mask, labels=targets, use_cache=False
    ).loss

  def step(self) -> dict[str, np.ndarray]:
    frames = self.encode(self.features, self.feature_mask)
    loss = self.loss(frames, self.feature_mask, self.prompt, self.targets)
    loss.backward()
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.detach().numpy()}

  def matmul(self, matrix: np.ndarray) -> None:
    tensor = self.torch.from_numpy(matrix)
    self.torch.matmul(tensor, tensor)

  def check(self) -> dict[str, np.ndarray]:
    """As of `Ours`."""
    embeddings = self.torch.from_numpy(self.inputs["embeddings"]).requires_grad_(True)
    mask = self.torch.from_numpy(self.inputs["mask"]).long()
    loss = self.lm(inputs_embeds=embeddings, attention_mask=mask, labels=self.targets).loss
    loss.backward()
    parts = {"speech_encoder": self.encoder, "adapter": self.adapter, "language_model": self.lm}
    # A vector that stands for masked frames in pre-training, and takes no part here.
    masked = self.encoder.masked_spec_embed.numel()
    found = {
      "frames": self._encode(self.features, self.feature_mask).numpy(),
      "lm_loss": loss.detach().numpy(),
      "lm_gradient": embeddings.grad.numpy(),  # pyright: ignore
    }
    for part, module in parts.items():
      count = sum(p.numel() for p in module.parameters())
      found[f"weights_{part}"] = np.asarray(count - masked * (part == "speech_encoder"))
    return found


def make_weights(folder: str) -> None:
  """Random models in the Hugging Face layout."""
  import torch
  from safetensors.torch import save_file
  from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    set_seed,
  )

  set_seed(0)
  Wav2Vec2BertModel(Wav2Vec2BertConfig(**ENCODER)).save_pretrained(f"{folder}/encoder")  # pyright: ignore
  SeamlessM4TFeatureExtractor().save_pretrained(f"{folder}/encoder")
  config = MT5Config(**LM, vocab_size=VOCAB_SIZE, num_decoder_layers=LM["num_layers"])  # pyright: ignore
  config.save_pretrained(f"{folder}/lm")
  weights = MT5ForConditionalGeneration(config).state_dict()
  del weights["encoder.embed_tokens.weight"], weights["decoder.embed_tokens.weight"]
  weights["lm_head.weight"] = torch.randn(VOCAB_SIZE, LM["d_model"]) * LM["d_model"] ** -0.5
  save_file(weights, f"{folder}/lm/model.safetensors")


def check_same(folder: Path) -> dict[str, Any]:
  """Largest differences over largest values; raises SystemExit unless both sides do the same work."""
  ours, theirs = (dict(np.load(folder / f"{name}-check.npz")) for name in ("ours", "eager"))
  real = work(len(ours["frames"]))["lengths"][:, None] >= samples_of(1 + np.arange(FEATURES))
  for side in (ours, theirs):
    side["frames"] = side["frames"] * real[..., None]
  found: dict[str, Any] = {}
  for name, limit in TOLERANCE.items():
    assert ours[name].shape == theirs[name].shape, name
    scale = np.abs(theirs[name]).max()
    found[name] = float(np.abs(ours[name] - theirs[name]).max() / scale)
    if not found[name] <= limit:
      raise SystemExit(f"not the same work: {name} differ by {found[name]} of the largest")
  for part in ("speech_encoder", "adapter", "language_model"):
    mine, other = (int(side[f"weights_{part}"]) for side in (ours, theirs))
    found[f"weights_{part}"] = [mine, other]
    if mine != other and (part != "adapter" or not other <= mine <= 1.01 * other):
      raise SystemExit(f"not the same work: the {part} has {mine} weights, the reference's {other}")
  return found


def gigaflop(batch_size: int) -> dict[str, float]:
  """10^9 FLOPs of the products with weights, of each part of PyTorch's step; ours are no fewer."""
  width, ffn = ENCODER["hidden_size"], ENCODER["intermediate_size"]
  # Two FFNs of two matrices, four of attention, three halves of the convolution's.
  encoder = ENCODER["num_hidden_layers"] * (4 * width * ffn + 7 * width**2) + 160 * width
  d_model, inner = LM["d_model"], LM["num_heads"] * LM["d_kv"]
  adapter = STACK * width * d_model + d_model**2
  adapter += ADAPTER_LAYERS * (4 * d_model**2 + 2 * d_model * TORCH_FFN)
  gated = 3 * d_model * LM["d_ff"]
  # Every position of the source also meets the decoder's keys and values.
  source = LM["num_layers"] * (4 * d_model * inner + gated + 2 * d_model * inner)
  target = LM["num_layers"] * (6 * d_model * inner + gated) + d_model * VOCAB_SIZE
  speech = FEATURES // STACK
  parts = {
    "speech_encoder": 2 * encoder * FEATURES,
    "adapter": 6 * adapter * speech,
    "language_model": 4 * (source * (speech + PROMPT) + target * TARGET),
  }
  return {part: round(batch_size * one / 1e9, 1) for part, one in parts.items()}


def report(flags: argparse.Namespace, times: Times) -> dict:
  settings = {"batch_size": flags.batch_size, "threads": flags.threads, "rounds": flags.rounds}
  flops = gigaflop(flags.batch_size)
  total = sum(flops.values())
  found: dict[str, Any] = {"settings": {**settings, "dtype": "float32"}, "gigaflop": flops}
  if {"ours", "eager"} <= set(flags.programs):
    found["same_work"] = check_same(Path(flags.folder))
  ceilings = {
    unit: max(
      2e-9 * MATMUL_SIZE**3 / statistics.median(run[unit] for run in runs)
      for runs in times["matmul"].values()
    )
    for unit in ("wall", "cpu")
  }
  found["matmul_gflop_per_second"] = round(ceilings["wall"], 1)
  found["matmul_gflop_per_cpu_second"] = round(ceilings["cpu"], 1)
  steps = times["step"]
  for name, runs in steps.items():
    wall, cpu = (statistics.median(run[unit] for run in runs) for unit in ("wall", "cpu"))
    found[name] = {
      "wall_seconds": round(wall, 3),
      "cpu_seconds": round(cpu, 3),
      "ceiling_percent_by_wall": round(100 * total / wall / ceilings["wall"], 1),
      "ceiling_percent_by_cpu": round(100 * total / cpu / ceilings["cpu"], 1),
      "peak_rss_mib": round(max(run["peak_rss_mib"] for run in runs)),
      "last_loss": round(float(np.load(f"{flags.folder}/{name}-step.npz")["loss"]), 4),
    }
    if name != "ours" and "ours" in steps:
      # Of each round, so that the machine's mood cancels; the median of the ratios.
      found[name]["ours_times_faster"] = {
        unit: round(
          statistics.median(b[unit] / a[unit] for a, b in zip(steps["ours"], runs, strict=True)), 2
        )
        for unit in ("wall", "cpu")
      }
  return found


def main() -> None:
  flags = parse(sys.argv[1:])
  if flags.worker:
    worker = Ours(flags) if flags.worker == "ours" else Reference(flags)
    matrix = np.random.default_rng(1).normal(size=(MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32)
    tasks = {
      "matmul": lambda: worker.matmul(matrix),
      "step": worker.step,
      "check": worker.check,
    }
    serve(tasks, Path(flags.folder), flags.worker)
    return
  with tempfile.TemporaryDirectory() as folder:
    flags.folder = folder
    make_weights(folder)
    commands = {
      name: [sys.executable, __file__, "--worker", name, *sys.argv[1:], "--folder", folder]
      for name in flags.programs
    }
    times = take_turns(commands, ("matmul", "step"), flags.rounds)
    # Last, and in processes of their own, so that the step's memory is the step's.
    checked = {name: commands[name] for name in ("ours", "eager") if name in commands}
    take_turns(checked, ("check",), 0)
    found = report(flags, times)
  text = json.dumps(found, indent=2)
  print(text)
  if flags.output:
    Path(flags.output).write_text(text + "\n")


if __name__ == "__main__":
  main()
