"""The names in spoken sentences of the miniature, as bytes: what a retriever is trained on."""

import seqio

from slm_jax.data.names_corpus import MiniNamesSource
from slm_jax.data.speech_tasks import add_speech_task

# "validation" has held-out patterns, names and voices.
add_speech_task(
  "mini_names",
  MiniNamesSource({"train": 7_000, "validation": 160}, seed=6),
  seqio.ByteVocabulary(),
  instructions=False,
)
