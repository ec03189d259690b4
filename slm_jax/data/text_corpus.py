"""The mini world's text: sentences with instructions about them, what the LM is pre-trained on."""

from collections.abc import Iterator

import tensorflow as tf

from slm_jax.data.example_source import Example, ExampleSource
from slm_jax.data.mini_world.examples import sample_text_example
from slm_jax.data.mini_world.splits import Split

# SeqIO's split → the world's: held-out sentence patterns, names and wordings are never in "train".
WORLD_SPLITS: dict[str, Split] = {"train": "train", "validation": "heldout"}
# Examples that stand for the grammar in a fingerprint: it changes with any rule that they use.
NUM_PROBES = 64


class MiniTextSource(ExampleSource):
  """`sample_text_example` as a SeqIO source: a sentence, an instruction about it, the answer."""

  fields = dict.fromkeys(
    ("id", "task", "language", "target_language", "sentence", "instruction", "target"), tf.string
  )

  def __init__(
    self, num_candidates: dict[str, int], *, seed: int, examples_per_shard: int = 20_000
  ):
    """`num_candidates`: split ("train", "validation") → number of examples."""
    super().__init__(num_candidates, examples_per_shard=examples_per_shard)
    self.num_candidates = dict(num_candidates)
    self.seed = seed

  def num_input_examples(self, split: str) -> int:
    return self.num_candidates[split]

  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    for index in range(start, stop):
      example = sample_text_example(self.seed, index, WORLD_SPLITS[split])
      yield {name: getattr(example, name).encode() for name in self.fields}

  def describe(self) -> dict:
    probes = [
      list(map(bytes.decode, e.values())) for e in self.make_examples("train", 0, NUM_PROBES)
    ]
    return {"kind": "mini text", "seed": self.seed, "probes": probes}
