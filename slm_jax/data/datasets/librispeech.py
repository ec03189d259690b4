"""LibriSpeech: TFDS's own builder, with audio left as FLAC."""

from collections.abc import Mapping
from typing import Any

from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.corpus_source import CorpusSource
from slm_jax.data.datasets.recipes import Recipe
from slm_jax.errors import UserError

NAME = "librispeech/lazy_decode:2.1.2"
# Split → TFDS's splits. "validation" is what is watched in training.
SPLITS = {
  "train": ("train_clean100", "train_clean360", "train_other500"),
  "validation": ("dev_clean", "dev_other"),
  "dev_clean": ("dev_clean",),
  "dev_other": ("dev_other",),
  "test_clean": ("test_clean",),
  "test_other": ("test_other",),
}


def read_record(example: Mapping[str, Any]) -> SpeechRecord:
  """The record in an example of TFDS's `librispeech/lazy_decode`; text is in capitals."""
  if not isinstance(example["speech"], bytes):
    raise UserError(f"librispeech holds decoded samples; prepare {NAME}, which holds FLAC")
  return SpeechRecord(
    id=example["id"].decode(),
    audio=example["speech"],
    text=example["text"].decode(),
    language="en",
    speaker=str(int(example["speaker_id"])),
  )


def librispeech(recipe: Recipe, **options) -> CorpusSource:
  """LibriSpeech as a source; `options` are those of `CorpusSource`."""
  return CorpusSource(NAME, recipe, SPLITS, read=read_record, **options)
