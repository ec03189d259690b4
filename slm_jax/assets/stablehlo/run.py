"""Answers about a recording with the programs of this folder.

  pip install jax safetensors sentencepiece soundfile
  python run.py recording.wav "Repeat the sentence."

The recording is at the manifest's sample rate (16 kHz), mono, and no longer than its `samples`. Nothing else of the
project that wrote the folder is needed.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import sentencepiece
import soundfile
from jax import export
from safetensors import safe_open

HERE = Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())


def program(name):
  """A program, whose first argument is a list of weights, the others as the manifest says."""
  content = (HERE / "programs" / f"{name}.bin").read_bytes()
  return jax.jit(export.deserialize(bytearray(content)).call)


def weights():
  """Name → array."""
  found = {}
  for file in sorted(HERE.glob("*.safetensors")):
    with safe_open(file, framework="flax") as tensors:
      found |= {name: tensors.get_tensor(name) for name in tensors.keys()}
  return found


def generate(audio, lengths, prompt, max_new_tokens=None):
  """int16 [B, S], int32 [B], int32 [B, P] → ids int32 [B, T], greedy."""
  named = weights()
  everything = [named[name] for name in MANIFEST["parameters"]]
  language_model = [named[name] for name in MANIFEST["language_model_parameters"]]
  batch = MANIFEST["batch_size"]
  memory, mask = program("encode")(everything, audio, lengths, prompt)
  state = program("start")(language_model, memory, mask)
  names = [output["name"] for output in MANIFEST["programs"]["start"]["outputs"]]
  done, ids = names.index("done"), names.index("ids")
  limits = np.full(batch, max_new_tokens or MANIFEST["max_new_tokens"], np.int32)
  options = limits, np.zeros(batch, np.float32), np.zeros(batch, np.uint32)
  advance = program("advance")
  while not np.asarray(state[done]).all():
    state = advance(language_model, state, mask, *options)
  return np.asarray(state[ids])


def main(path, instruction):
  samples, rate = soundfile.read(path, dtype="int16")
  if rate != MANIFEST["sample_rate"] or samples.ndim != 1 or len(samples) > MANIFEST["samples"]:
    sys.exit(
      f"{path}: expected mono at {MANIFEST['sample_rate']} Hz, {MANIFEST['samples']} samples at most"
    )
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(HERE / "spiece.model"))
  tokens = [*pieces.encode(instruction), MANIFEST["eos_id"]]
  if len(tokens) > MANIFEST["prompt_length"]:
    sys.exit(f"{instruction!r}: {len(tokens)} tokens, {MANIFEST['prompt_length']} at most")
  audio = np.zeros((MANIFEST["batch_size"], MANIFEST["samples"]), np.int16)
  audio[:, : len(samples)] = samples
  prompt = np.zeros((MANIFEST["batch_size"], MANIFEST["prompt_length"]), np.int32)
  prompt[:, : len(tokens)] = tokens
  lengths = np.full(len(audio), len(samples), np.int32)
  row = generate(audio, lengths, prompt)[0].tolist()
  stop = row.index(MANIFEST["eos_id"]) if MANIFEST["eos_id"] in row else len(row)
  print(pieces.decode([token for token in row[:stop] if token < pieces.vocab_size()]))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2])
