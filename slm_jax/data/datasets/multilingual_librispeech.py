"""Multilingual LibriSpeech: audiobooks in eight languages."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import decode, members
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.errors import UserError

URL = "https://dl.fbaipublicfiles.com/mls"
LANGUAGES = {
  "english": "en",
  "german": "de",
  "dutch": "nl",
  "french": "fr",
  "spanish": "es",
  "italian": "it",
  "portuguese": "pt",
  "polish": "pl",
}
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
_TRANSCRIPTS = re.compile(r"(?:^|/)(train|dev|test)/transcripts\.txt$")
_AUDIO = re.compile(r"(?:^|/)(train|dev|test)/audio/[^/]+/[^/]+/([^/]+)\.(?:flac|opus)$")


class MultilingualLibrispeechConfig(tfds.core.BuilderConfig):
  """A language in English, and whether its audio is Opus instead of FLAC."""

  def __init__(self, language: str, opus: bool):
    super().__init__(name=f"{language}_opus" if opus else language, description="")
    self.language = language


class MultilingualLibrispeech(SpeechCorpusBuilder):
  """MLS. Config "german" reads FLAC, "german_opus" the Opus archive, a quarter as large.

  Transcripts are in lower case without punctuation.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://www.openslr.org/94"
  LICENCE = "CC BY 4.0"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put mls_<language>.tar.gz or mls_<language>_opus.tar.gz of openslr.org/94 there, packed or "
    "unpacked, and beside it md5sum.txt to have it checked."
  )
  BUILDER_CONFIGS = [
    MultilingualLibrispeechConfig(language, opus)
    for language in LANGUAGES
    for opus in (False, True)
  ]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    config = self.builder_config
    assert isinstance(config, MultilingualLibrispeechConfig)
    name = f"mls_{config.name}.tar.gz"
    path = self.archive(dl_manager, name, url=f"{URL}/{name}")
    transcripts, damaged = _transcripts(path)
    language = LANGUAGES[config.language]
    return {
      split: self._generate_examples(
        split, _records(path, folder, transcripts[folder], damaged[folder], language)
      )
      for split, folder in SPLITS.items()
    }


def _transcripts(archive: Path) -> tuple[dict[str, dict[str, str]], dict[str, list[LeftOut]]]:
  """Folder of a split → id → what is said; folder → damaged lines."""
  found: dict[str, dict[str, str]] = {}
  damaged: dict[str, list[LeftOut]] = {}
  for name, read in members(archive):
    if not (place := _TRANSCRIPTS.search(name)):
      continue
    texts, bad = found.setdefault(place[1], {}), damaged.setdefault(place[1], [])
    for number, line in enumerate(decode(read(), f"{archive}:{name}").split("\n"), start=1):
      key, tab, text = line.rstrip("\r").partition("\t")
      if tab:
        texts[key] = text
      elif key:
        bad.append(LeftOut(f"{archive}:{name}:{number}", "no tab between id and transcript"))
  if missing := [folder for folder in SPLITS.values() if folder not in found]:
    raise UserError(f"{archive} has no {missing[0]}/transcripts.txt; download it again")
  return found, damaged


def _records(
  archive: Path,
  folder: str,
  transcripts: Mapping[str, str],
  damaged: list[LeftOut],
  language: str,
) -> Iterator[SpeechRecord | LeftOut]:
  yield from damaged
  waiting = dict(transcripts)
  for name, read in members(archive):
    place = _AUDIO.search(name)
    if not place or place[1] != folder:
      continue
    key = place[2]
    if key not in waiting:
      yield LeftOut(PurePosixPath(name).name, "no transcript")
      continue
    yield SpeechRecord(
      id=key,
      audio=read(),
      text=waiting.pop(key),
      language=language,
      speaker=key.partition("_")[0],
    )
  for key in waiting:
    yield LeftOut(key, "recording missing")
