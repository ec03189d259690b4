"""Spoken digits by people (Free Spoken Digit Dataset): three speakers to train on, one held out."""

import os
from pathlib import Path

from slm_jax.data.speech_tasks import register_speech_task
from slm_jax.data.vocabulary import MINI_VOCABULARY

# $SLM_JAX_SHARED_DATA, or the folder of recordings beside the checkout.
RECORDINGS = Path(
  os.environ.get("SLM_JAX_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)

register_speech_task(
  "digits",
  RECORDINGS / "fsdd" / "manifest.jsonl",
  instruction="Write this down.",
  splits={
    "train": {"speaker": ("george", "jackson", "nicolas")},
    "validation": {"speaker": "theo"},
  },
  vocabulary=MINI_VOCABULARY,
  max_seconds=2.0,
)
