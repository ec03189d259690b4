"""Alpaca's instructions about an input, the input spoken: the paper's data for following instructions."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import read_text
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.data.datasets.spoken_text import share_of, speak
from slm_jax.data.speech_synthesis import EspeakSynthesizer, SpeechSynthesizer
from slm_jax.errors import UserError

FILE = "alpaca_data.json"
URL = f"https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/{FILE}"
VALIDATION_SHARE = 0.02
# Half a minute at 170 words a minute.
MAX_CHARACTERS = 400
# What stands for no input in some of the rows.
PLACEHOLDERS = frozenset(("noinput", "no input", "none", "n/a", "not applicable"))


class SpokenAlpaca(SpeechCorpusBuilder):
  """Alpaca: the field `input` is spoken by a synthesiser, the instruction stays text, `output` is the answer.

  Rows without an input, about three of five, and inputs that take more than half a minute to say
  are left out. Equal inputs are in one split.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://github.com/tatsu-lab/stanford_alpaca"
  LICENCE = "CC BY-NC 4.0; made with text-davinci-003, whose terms forbid competing models"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"The licence forbids commercial use: accept it, download {FILE} from "
    "github.com/tatsu-lab/stanford_alpaca and put it there."
  )

  # Called once for each split.
  synthesizer: type[SpeechSynthesizer] = EspeakSynthesizer

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    path = self.archive(dl_manager, FILE)
    make = self.synthesizer
    return {
      split: self._generate_examples(split, _records(path, split, make))
      for split in ("train", "validation")
    }


def _records(
  path: Path, split: str, synthesizer: Callable[[], SpeechSynthesizer]
) -> Iterator[SpeechRecord | LeftOut]:
  speaker = synthesizer()
  for number, row in enumerate(_rows(path)):
    key = f"alpaca-{number:05d}"
    text = " ".join(row["input"].split())
    in_validation = share_of(text) < VALIDATION_SHARE
    if in_validation != (split == "validation"):
      continue
    if text.strip("<>.").lower() in PLACEHOLDERS | {""}:
      yield LeftOut(key, "no input", problem=False)
    elif len(text) > MAX_CHARACTERS:
      yield LeftOut(key, f"input longer than {MAX_CHARACTERS} characters", problem=False)
    elif not any(map(str.isalnum, text)):
      yield LeftOut(key, "nothing to be said in the input", problem=False)
    elif not row["output"].strip():
      yield LeftOut(key, "no output", problem=False)
    else:
      audio, voice = speak(speaker, text, "en", key, split)
      yield SpeechRecord(
        id=key,
        audio=audio,
        text=text,
        language="en",
        speaker=voice,
        instruction=row["instruction"].strip(),
        answer=row["output"].strip(),
      )


def _rows(path: Path) -> list[dict[str, str]]:
  fields = ("instruction", "input", "output")
  try:
    rows = json.loads(read_text(path))
    found = [{field: row[field] for field in fields} for row in rows]
    if all(isinstance(value, str) for row in found for value in row.values()):
      return found
    reason = "a field is no string"
  except (ValueError, TypeError, KeyError) as error:
    reason = f"{type(error).__name__}: {error}"
  raise UserError(
    f"{path} is not a JSON list of objects with {', '.join(fields)} ({reason}); download it again"
  )
