"""Spoken sentences of the mini world in which people are named: what a retriever learns from."""

import dataclasses

from slm_jax.data.mini_world.world import sample_sentence
from slm_jax.data.speech_corpus import MiniSpeechSource, Utterance
from slm_jax.data.text_corpus import WORLD_SPLITS
from slm_jax.entities import SEPARATOR

# From one draw of a candidate to the next: a multiple of the number of languages, above any split's size.
_NEXT_DRAW = 4_000_000


class MiniNamesSource(MiniSpeechSource):
  """Sentences with at least one name; the target is their names, "Karina|Belto".

  Splits as of `MiniSpeechSource`: "train" has the training patterns, names and voices, every other split
  the held-out ones alone.
  """

  def __init__(self, num_candidates: dict[str, int], *, seed: int, **options):
    """Arguments as of `MiniSpeechSource`, but for the task."""
    super().__init__("transcribe", num_candidates, seed=seed, **options)

  def utterance(self, split: str, index: int) -> Utterance:
    """Candidate `index` of a split: the first draw that has a name."""
    while True:
      utterance = super().utterance(split, index)
      names = sample_sentence(self.seed, index, WORLD_SPLITS[split], utterance.language).names
      if names:
        target = SEPARATOR.join(dict.fromkeys(names))
        return dataclasses.replace(utterance, task="names", target=target)
      index += _NEXT_DRAW

  def describe(self) -> dict:
    return super().describe() | {"kind": "mini names"}
