"""What int8 weights cost in accuracy and save in memory, for the LM that ships with the package and for a random one.

  python benchmarks/int8_weights.py --examples 500

The shipped LM is compared on held-out text of the mini world: exact answers in percent, greedy, and the root mean
square error of its logits over their standard deviation. The random one has the shape of mT5-small. Prints one JSON
object.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

from slm_jax import config  # noqa: E402
from slm_jax.data.mini_world.examples import sample_text_example  # noqa: E402
from slm_jax.evaluation.pretraining import score_language_model  # noqa: E402
from slm_jax.interop import load_language_model  # noqa: E402
from slm_jax.interop.hf_t5 import save_language_model  # noqa: E402
from slm_jax.models.t5 import T5  # noqa: E402
from slm_jax.training.recipes import resolve_path  # noqa: E402

SEED = 1


def logit_error(first, second, tokens: np.ndarray) -> float:
  """RMS of the differences of two models' logits, over the standard deviation of the first's."""
  inputs, targets = tokens[:, :16], np.pad(tokens[:, 16:24], ((0, 0), (1, 0)))
  logits = [
    model.logits(model.encode(tokens=inputs), inputs != 0, targets) for model in (first, second)
  ]
  return float(jnp.sqrt(jnp.mean(jnp.square(logits[0] - logits[1]))) / jnp.std(logits[0]))


def size(model) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


def compare(folder: Path, num_examples: int) -> dict:
  """The figures of one LM, float32, bfloat16 and int8."""
  kinds = ("float32", "bfloat16", "int8")
  models = {kind: load_language_model(folder, dtype=kind) for kind in kinds}
  vocab_size = models["float32"].config.vocab_size
  tokens = np.random.default_rng(0).integers(3, vocab_size, (8, 24))
  report: dict = {"bytes": {kind: size(model) for kind, model in models.items()}}
  report["logit_error"] = {
    kind: logit_error(models["float32"], models[kind], tokens) for kind in kinds[1:]
  }
  if num_examples:
    examples = [sample_text_example(SEED, index, "heldout") for index in range(num_examples)]
    report["exact_match"] = {
      kind: score_language_model(model, examples, 28) for kind, model in models.items()
    }
  return report


def random_model(folder: Path) -> None:
  """Writes a freshly initialised mT5-small."""
  bindings = ["train.model=@LanguageModelRecipe()", "LanguageModelRecipe.tokenizer=''"]
  config.load(["models/t5/mt5_small.gin"], bindings)
  shape = config.build("LanguageModelRecipe").config
  tokens = jnp.ones((1, 2), jnp.int32)
  params = jax.jit(T5(shape).init)(jax.random.key(0), tokens, tokens > 0, tokens)["params"]
  save_language_model(folder, shape, jax.device_get(nn.unbox(params)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--examples", type=int, default=500)
  flags = parser.parse_args()
  report: dict = {"mini": compare(resolve_path("slm_jax:mini/language_model"), flags.examples)}
  with tempfile.TemporaryDirectory() as folder:
    random_model(Path(folder))
    report["mt5_small_random"] = compare(Path(folder), 0)
  print(json.dumps(report, indent=1))


if __name__ == "__main__":
  main()
