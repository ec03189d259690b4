"""People speaking telephone prompts in English, Spanish, French and Italian, with translations.

Recordings in folders with a `manifest.jsonl` each, in $SLM_JAX_SHARED_DATA or beside the checkout:
`asterisk` has the same prompts in four languages (`language`, `text`, `translations`, `prompt`),
`slu_coffee` orders with an `intent`, `kathleen_en` and `kerstin_de` read sentences. The tasks:

* prompts_asr: write down a prompt of any language;
* prompts_<from>_<to>: translate a prompt, of en, es, fr and it;
* coffee_intent: name the intent of an order;
* recordings_slm: transcription and translation together, for training.

A prompt is in one split in every language, so that no translation of a validation prompt is ever
trained on. Each language has one speaker, who is in both splits.
"""

import itertools
import os
from pathlib import Path

import seqio

from slm_jax.data.speech_tasks import register_speech_task

RECORDINGS = Path(
  os.environ.get("SLM_JAX_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
PROMPTS = RECORDINGS / "asterisk" / "manifest.jsonl"
LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian"}
SPLITS = {"train": 0.9, "validation": 0.1}

register_speech_task(
  "prompts_asr",
  PROMPTS,
  instruction=(
    "Write down what you hear.",
    "Transcribe the speech.",
    "What does the speaker say?",
  ),
  metrics=("wer", "cer"),
  splits=SPLITS,
  split_by="prompt",
)

for _source, _target in itertools.permutations(LANGUAGES, 2):
  register_speech_task(
    f"prompts_{_source}_{_target}",
    PROMPTS,
    instruction=(
      f"Translate to {LANGUAGES[_target]}.",
      f"Say in {LANGUAGES[_target]} what you hear.",
    ),
    metrics=("bleu", "chrf"),
    target=f"translations.{_target}",
    target_language=_target,
    where={"language": _source, f"translations.{_target}": "*"},
    splits=SPLITS,
    split_by="prompt",
  )

register_speech_task(
  "coffee_intent",
  RECORDINGS / "slu_coffee" / "manifest.jsonl",
  instruction="Name the intent of this order.",
  metrics=("exact",),
  target="intent",
  splits={"train": 0.8, "validation": 0.2},
)

seqio.MixtureRegistry.add(
  "recordings_slm",
  ["prompts_asr", *(f"prompts_{s}_{t}" for s, t in itertools.permutations(LANGUAGES, 2))],
  default_rate=seqio.mixing_rate_num_examples,
)
