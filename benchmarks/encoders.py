"""Our speech encoders and their frontends beside Transformers': the same weights, the same audio, in turns.

  python benchmarks/encoders.py --family whisper --layers 4 --output=encoders.json

A random model of the family's published width, with `--layers` of its layers, in fp32, and a batch of `--batch_size`
waveforms of up to `--seconds`. Measured:

* `frontend`: waveforms to features, ours on the device, Transformers' feature extractor in NumPy or torch;
* `encoder`: waveforms (ours) or ready features (Transformers', so that its extractor costs nothing here) to frames;
* `matmul`: the machine's ceiling, a product of two 2048 x 2048 matrices.

FLOPs are those of the products with weights, 2 for each weight and frame it meets; attention's own are not counted.
Printed is JSON. Both must give the same frames, or the comparison is refused. Needs the `test` extra (PyTorch).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from turns import Times, serve, take_turns

SAMPLE_RATE = 16_000
MATMUL_SIZE = 2048
TOLERANCE = 2e-3
# model_type → (class of the config, class of the model, class of the extractor, config of the published width).
FAMILIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
  "whisper": (
    "WhisperConfig",
    "WhisperForConditionalGeneration",
    "WhisperFeatureExtractor",
    # openai/whisper-small
    {"d_model": 768, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_layers": 1},
  ),
  "wav2vec2-bert": (
    "Wav2Vec2BertConfig",
    "Wav2Vec2BertModel",
    "SeamlessM4TFeatureExtractor",
    {},  # facebook/w2v-bert-2.0
  ),
  "parakeet_ctc": (
    "ParakeetCTCConfig",
    "ParakeetForCTC",
    "ParakeetFeatureExtractor",
    {},  # nvidia/parakeet-ctc-1.1b
  ),
  "lasr_ctc": ("LasrCTCConfig", "LasrForCTC", "LasrFeatureExtractor", {}),  # google/medasr
  "gemma3n_audio": (
    "Gemma3nAudioConfig",
    "Gemma3nAudioEncoder",
    "Gemma3nAudioFeatureExtractor",
    {},
  ),
  "gemma4_audio": ("Gemma4AudioConfig", "Gemma4AudioModel", "Gemma4AudioFeatureExtractor", {}),
}
LAYER_FIELDS = {"whisper": "encoder_layers", "gemma3n_audio": "conf_num_hidden_layers"}


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--family", choices=FAMILIES, required=True)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="the JSON goes here too")
  parser.add_argument("--worker", choices=("ours", "transformers"), help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def waveforms(flags: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
  """(int16 [B, S], lengths [B]): noise of unequal lengths, zeros past them."""
  samples = round(flags.seconds * SAMPLE_RATE)
  lengths = np.linspace(0.7 * samples, samples, flags.batch_size).astype(np.int32)
  audio = np.random.default_rng(0).normal(size=(flags.batch_size, samples)) * 3000
  real = np.arange(samples) < lengths[:, None]
  return np.where(real, audio, 0).astype(np.int16), lengths


class Ours:
  """slm_jax."""

  def __init__(self, flags: argparse.Namespace):
    import jax
    import jax.numpy as jnp

    from slm_jax.interop import load_speech_encoder

    self.encoder: Any = load_speech_encoder(flags.folder)
    self.audio, self.lengths = waveforms(flags)
    self.multiply = jax.jit(jnp.matmul)

  def frontend(self) -> None:
    self.encoder.features(self.audio, self.lengths)[0].block_until_ready()

  def run(self) -> dict[str, np.ndarray]:
    out = self.encoder(self.audio, self.lengths)
    return {"frames": np.asarray(out.frames), "mask": np.asarray(out.mask)}

  def matmul(self, matrix: np.ndarray) -> None:
    self.multiply(matrix, matrix).block_until_ready()


class Transformers:
  """Hugging Face Transformers on PyTorch, eager, in its defaults."""

  def __init__(self, flags: argparse.Namespace):
    import torch
    import transformers

    self.torch, self.family = torch, flags.family
    _, model, extractor, _ = FAMILIES[flags.family]
    self.model: Any = reference_class(model).from_pretrained(flags.folder).eval()
    self.model.requires_grad_(False)
    if flags.family == "whisper":
      self.model = self.model.model.encoder
    self.extractor: Any = getattr(transformers, extractor).from_pretrained(flags.folder)
    audio, lengths = waveforms(flags)
    rows = [row[:n] / np.float32(32768) for row, n in zip(audio, lengths, strict=True)]
    self.rows = [row.astype(np.float32) for row in rows]
    self.inputs = self.extract()

  def extract(self) -> dict[str, Any]:
    # LASR's gives no mask unasked, and its encoder would then hear padding.
    asked = {"return_attention_mask": True} if self.family == "lasr_ctc" else {}
    found = self.extractor(self.rows, sampling_rate=SAMPLE_RATE, return_tensors="pt", **asked)
    return dict(found)

  def frontend(self) -> None:
    self.extract()

  def run(self) -> dict[str, np.ndarray]:
    with self.torch.no_grad():
      inputs = dict(self.inputs)
      if "input_features_mask" in inputs:  # the Gemma towers' argument is True at padding, or real
        out = self.model(inputs["input_features"], gemma_mask(self.model, inputs))
        frames = out[0]
      else:
        out = self.model(**inputs, output_hidden_states=True)
        hidden = getattr(out, "last_hidden_state", None)
        frames = out.hidden_states[-1] if hidden is None else hidden
    return {"frames": frames.float().numpy()}

  def matmul(self, matrix: np.ndarray) -> None:
    tensor = self.torch.from_numpy(matrix)
    self.torch.matmul(tensor, tensor)


def gemma_mask(model: Any, inputs: dict[str, Any]) -> Any:
  """Gemma 3n's tower is told where padding is, Gemma 4's where it is not."""
  mask = inputs["input_features_mask"].bool()
  return ~mask if "Gemma3n" in type(model).__name__ else mask


def reference_class(name: str) -> Any:
  """A class of Transformers, exported or not."""
  import transformers

  if hasattr(transformers, name):
    return getattr(transformers, name)
  from transformers.models.gemma3n import modeling_gemma3n
  from transformers.models.gemma4 import modeling_gemma4

  return getattr(modeling_gemma3n, name, None) or getattr(modeling_gemma4, name)


def make_weights(flags: argparse.Namespace) -> None:
  """A folder in the Hugging Face layout, of random weights, with the extractor's settings."""
  import transformers

  config_class, model, extractor, shape = FAMILIES[flags.family]
  transformers.set_seed(0)
  field = LAYER_FIELDS.get(flags.family, "num_hidden_layers")
  settings: dict[str, Any] = {**shape, field: flags.layers}
  if flags.family in ("parakeet_ctc", "lasr_ctc"):
    settings = {"encoder_config": settings}
  config = getattr(transformers, config_class)(**settings)
  reference_class(model)(config).save_pretrained(flags.folder)
  getattr(transformers, extractor)().save_pretrained(flags.folder)


def weights_met(folder: str) -> int:
  """Weights that every frame meets in a product: matrices and convolutions of the layers."""
  from slm_jax.interop import open_speech_encoder

  parameters = open_speech_encoder(folder).parameters
  return sum(
    one.size for path, one in parameters.items() if "/layers/" in f"/{path}" and one.ndim > 2
  )


def report(flags: argparse.Namespace, times: Times) -> dict:
  folder = Path(flags.folder)
  ours, theirs = (np.load(folder / f"{name}-encoder.npz") for name in ("ours", "transformers"))
  mask = ours["mask"]
  frames = theirs["frames"][:, : mask.shape[1]]
  checked = mask[:, : frames.shape[1]]
  if flags.family == "gemma3n_audio":
    # Transformers' last frame of a row hears the padding behind it, ours does not.
    checked = checked & np.pad(checked[:, 1:], ((0, 0), (0, 1)))
  worst = float(np.abs(ours["frames"][:, : frames.shape[1]] - frames)[checked].max())
  scale = float(np.abs(frames).max())
  if worst > TOLERANCE * scale:
    raise SystemExit(f"not the same work: frames differ by {worst}, the largest is {scale}")
  settings = {k: v for k, v in vars(flags).items() if k not in ("folder", "worker", "output")}
  flops = 2 * weights_met(flags.folder) * mask.size
  found: dict[str, Any] = {
    "settings": {**settings, "dtype": "float32", "frames": list(mask.shape)},
    "same_work": {"largest_difference": worst, "largest_value": scale},
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
      if task != "frontend":
        work = flops if task == "encoder" else 2 * MATMUL_SIZE**3
        found[task][name]["gflop_per_second"] = round(work / wall / 1e9, 1)
    # Of each round, so that the machine's mood cancels; the median of the ratios.
    ratios = [b["wall"] / a["wall"] for a, b in zip(*workers.values(), strict=True)]
    found[task]["times_faster"] = round(statistics.median(ratios), 2)
  return found


def main() -> None:
  flags = parse(sys.argv[1:])
  if flags.worker:
    worker = {"ours": Ours, "transformers": Transformers}[flags.worker](flags)
    matrix = np.random.default_rng(1).normal(size=(MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32)
    tasks = {
      "frontend": worker.frontend,
      "encoder": worker.run,
      "matmul": lambda: worker.matmul(matrix),
    }
    serve(tasks, Path(flags.folder), flags.worker)
    return
  with tempfile.TemporaryDirectory() as folder:
    flags.folder = folder
    make_weights(flags)
    commands = {
      name: [sys.executable, __file__, "--worker", name, *sys.argv[1:], "--folder", folder]
      for name in ("ours", "transformers")
    }
    found = report(flags, take_turns(commands, ("matmul", "frontend", "encoder"), flags.rounds))
  text = json.dumps(found, indent=2)
  print(text)
  if flags.output:
    Path(flags.output).write_text(text + "\n")


if __name__ == "__main__":
  main()
