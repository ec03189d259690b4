"""The names in spoken sentences of the miniature, as bytes: what a retriever is trained on."""

import seqio

from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.data.speech_tasks import add_speech_task

# Every sentence has names. "validation" has held-out patterns, names and voices.
add_speech_task(
  "mini_names",
  MiniSpeechSource("biasing", {"train": 7_000, "validation": 160}, seed=6, num_distractors=0),
  seqio.ByteVocabulary(),
  instructions=False,
  target="names",
)
