"""Questions of SQuAD, or of any file in its layout, asked aloud about a written passage."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import members, read_text
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.data.datasets.spoken_text import speak
from slm_jax.data.speech_synthesis import EspeakSynthesizer, SpeechSynthesizer
from slm_jax.errors import UserError

SPLITS = {"train": "train-v1.1", "validation": "dev-v1.1"}
URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
UNANSWERABLE = "unanswerable"
_AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


class SpokenSquad(SpeechCorpusBuilder):
  """SQuAD 1.1 with spoken questions: `context` is the passage, `answer` the first one given.

  Recordings are taken from an archive for each split whose files are named after the questions
  (`<id>.wav`); without one the questions are spoken by a synthesiser.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://rajpurkar.github.io/SQuAD-explorer/"
  LICENCE = "CC BY-SA 4.0"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put train-v1.1.json and dev-v1.1.json there, or files of the same layout, and for recorded "
    "questions train-v1.1.tar.gz and dev-v1.1.tar.gz (or folders) of <question id>.wav."
  )

  # Called once for each split that has no recordings.
  synthesizer: type[SpeechSynthesizer] = EspeakSynthesizer

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    make = self.synthesizer
    splits = {}
    for split, name in SPLITS.items():
      path = self.archive(dl_manager, f"{name}.json", url=f"{URL}/{name}.json")
      questions = _questions(path)
      recordings = self.find(dl_manager, f"{name}.tar.gz", f"{name}.tar", f"{name}.zip")
      found = (
        _recorded(questions, recordings) if recordings else _synthesised(questions, split, make)
      )
      splits[split] = self._generate_examples(split, found)
    return splits


def _recorded(
  questions: dict[str, dict[str, str]], recordings: Path
) -> Iterator[SpeechRecord | LeftOut]:
  waiting = dict(questions)
  for name, read in members(recordings):
    path = PurePosixPath(name)
    if path.suffix in _AUDIO and (texts := waiting.pop(path.stem, None)):
      yield SpeechRecord(id=path.stem, audio=read(), language="en", **texts)
  for key in waiting:
    yield LeftOut(key, "recording missing")


def _synthesised(
  questions: dict[str, dict[str, str]], split: str, synthesizer: Callable[[], SpeechSynthesizer]
) -> Iterator[SpeechRecord | LeftOut]:
  speaker = synthesizer()
  for key, texts in questions.items():
    if not any(map(str.isalnum, texts["text"])):
      yield LeftOut(key, "nothing to be said in the question", problem=False)
      continue
    audio, voice = speak(speaker, texts["text"], "en", key, split)
    yield SpeechRecord(id=key, audio=audio, language="en", speaker=voice, **texts)


def _questions(path: Path) -> dict[str, dict[str, str]]:
  """Id of a question → the texts of its record."""
  found: dict[str, dict[str, str]] = {}
  try:
    for article in json.loads(read_text(path))["data"]:
      for paragraph in article["paragraphs"]:
        for question in paragraph["qas"]:
          answers = question.get("answers") or []
          found[str(question["id"])] = {
            "text": " ".join(question["question"].split()),
            "context": " ".join(paragraph["context"].split()),
            "answer": answers[0]["text"].strip() if answers else UNANSWERABLE,
          }
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f"{path} has not SQuAD's layout ({type(error).__name__}: {error}); expected "
      'data[].paragraphs[].qas[] with "id", "question" and "answers"'
    ) from error
  return found
