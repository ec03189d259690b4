"""Spoken digits by people (Free Spoken Digit Dataset): three speakers to train on, one held out."""

import os
from pathlib import Path

from slm_jax.data.manifest_source import ManifestSource
from slm_jax.data.speech_tasks import add_speech_task
from tasks.mini import VOCABULARY

# $SLM_JAX_SHARED_DATA, or the folder of recordings beside the checkout.
RECORDINGS = Path(
  os.environ.get("SLM_JAX_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)

add_speech_task(
  "digits",
  ManifestSource(
    RECORDINGS / "fsdd" / "manifest.jsonl",
    {
      "train": {"speaker": ("george", "jackson", "nicolas")},
      "validation": {"speaker": ("theo",)},
    },
    task="repeat",
    instruction="Write this down.",
    max_samples=32_000,
  ),
  VOCABULARY,
)
