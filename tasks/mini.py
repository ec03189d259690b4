"""The miniature's tasks: text, recognition, translation and questions of the mini world."""

from pathlib import Path

import seqio

import slm_jax
from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.data.speech_tasks import add_speech_task, add_text_task
from slm_jax.data.text_corpus import MiniTextSource

VOCABULARY = seqio.SentencePieceVocabulary(
  str(Path(slm_jax.__file__).parent / "assets/mini/spiece.model")
)

# Each task has a seed, and so sentences and audio, of its own. "validation" has held-out patterns,
# names and voices.
add_text_task(
  "mini_text", MiniTextSource({"train": 250_000, "validation": 2_000}, seed=1), VOCABULARY
)
add_speech_task(
  "mini_ctc",
  MiniSpeechSource("transcribe", {"train": 48_000, "validation": 400}, seed=2),
  VOCABULARY,
  instructions=False,
)
add_speech_task(
  "mini_asr", MiniSpeechSource("repeat", {"train": 7_000, "validation": 160}, seed=3), VOCABULARY
)
add_speech_task(
  "mini_ast",
  MiniSpeechSource("translate", {"train": 7_000, "validation": 160}, seed=4),
  VOCABULARY,
)
add_speech_task(
  "mini_question", MiniSpeechSource("question", {"validation": 160}, seed=5), VOCABULARY
)

# What the adapter is trained on: never a question.
seqio.MixtureRegistry.add("mini_slm", [("mini_asr", 1.0), ("mini_ast", 1.0)])
