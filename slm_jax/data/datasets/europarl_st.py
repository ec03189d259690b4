"""Europarl-ST: speeches of the European Parliament with translations between nine languages."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from slm_jax.audio.files import decode_audio
from slm_jax.data.datasets.archives import decode, members
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.data.datasets.segments import BadSegment, cut, encode_flac
from slm_jax.errors import UserError

URL = "https://www.mllp.upv.es/europarl-st/v1.1.tar.gz"
LANGUAGES = "de en es fr it nl pl pt ro".split()
SPLITS = {"train": "train", "train_noisy": "train-noisy", "validation": "dev", "test": "test"}


class EuroparlStConfig(tfds.core.BuilderConfig):
  """Speech of `source` with its translation into `target`."""

  def __init__(self, source: str, target: str):
    super().__init__(name=f"{source}_{target}", description="")
    self.source = source
    self.target = target


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Segment:
  """A sentence: the recording, where it lies in it in seconds, and its texts."""

  id: str
  recording: str
  start: float
  stop: float
  text: str
  translation: str


class EuroparlSt(SpeechCorpusBuilder):
  """Europarl-ST 1.1. Config "en_de" is English speech with German translations.

  Sentences are cut out of whole speeches. Split "train_noisy" is what the corpus's own filter left
  out of "train".
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://www.mllp.upv.es/europarl-st/"
  LICENCE = "CC BY-NC 4.0"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "The licence forbids commercial use: accept it at mllp.upv.es/europarl-st, download v1.1.tar.gz "
    "and put it there, packed or unpacked (v1.1/)."
  )
  BUILDER_CONFIGS = [EuroparlStConfig(*pair) for pair in itertools.permutations(LANGUAGES, 2)]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    config = self.builder_config
    assert isinstance(config, EuroparlStConfig)
    archive = self.archive(dl_manager, "v1.1.tar.gz")
    lists = _lists(archive, config)
    if missing := [f for s, f in SPLITS.items() if f not in lists and s != "train_noisy"]:
      raise UserError(
        f"{archive} has no {config.source}/{config.target}/{missing[0]}/segments.lst; expected "
        "Europarl-ST 1.1"
      )
    return {
      split: self._generate_examples(
        split, _records(archive, _segments(archive, folder, lists[folder], config), config)
      )
      for split, folder in SPLITS.items()
      if folder in lists
    }


def _lists(archive: Path, config: EuroparlStConfig) -> dict[str, dict[str, list[str]]]:
  """Folder of a split → file → lines, of the three files that make the segments."""
  files = ("segments.lst", f"segments.{config.source}", f"segments.{config.target}")
  wanted = re.compile(rf"(?:^|/){config.source}/{config.target}/([^/]+)/([^/]+)$")
  found: dict[str, dict[str, list[str]]] = {}
  for name, read in members(archive):
    place = wanted.search(name)
    if place and place[2] in files:
      # Not splitlines: some sentences hold U+2028.
      lines = decode(read(), f"{archive}:{name}").removesuffix("\n").split("\n")
      found.setdefault(place[1], {})[place[2]] = lines
  return found


def _segments(
  archive: Path, folder: str, lists: dict[str, list[str]], config: EuroparlStConfig
) -> list[_Segment | LeftOut]:
  files = ("segments.lst", f"segments.{config.source}", f"segments.{config.target}")
  columns = [lists.get(file, []) for file in files]
  if len({len(column) for column in columns}) != 1:
    counts = ", ".join(f"{file} {len(c)}" for file, c in zip(files, columns, strict=True))
    raise UserError(
      f"{archive}, {config.name}/{folder}: lines differ ({counts}); download it again"
    )
  segments: list[_Segment | LeftOut] = []
  for number, (place, text, translation) in enumerate(zip(*columns, strict=True)):
    try:
      recording, start, stop = place.split()
      times = float(start), float(stop)
    except ValueError:
      name = f"{archive}, {config.name}/{folder}/segments.lst:{number + 1}"
      segments.append(LeftOut(name, f"{place!r} is not a recording, its start and its end"))
      continue
    segments.append(
      _Segment(
        id=f"{recording}_{number:06d}",
        recording=recording,
        start=times[0],
        stop=times[1],
        text=text.strip(),
        translation=translation.strip(),
      )
    )
  return segments


def _records(
  archive: Path, segments: list[_Segment | LeftOut], config: EuroparlStConfig
) -> Iterator[SpeechRecord | LeftOut]:
  waiting: dict[str, list[_Segment]] = {}
  for segment in segments:
    if isinstance(segment, LeftOut):
      yield segment
    else:
      waiting.setdefault(segment.recording, []).append(segment)
  audio = re.compile(rf"(?:^|/){config.source}/audios/[^/]+$")
  for name, read in members(archive):
    recording = PurePosixPath(name).stem
    if not audio.search(name) or recording not in waiting:
      continue
    wanted = waiting.pop(recording)
    try:
      samples = decode_audio(read(), f"{archive}:{name}")
    except UserError as error:
      yield from (LeftOut(segment.id, str(error)) for segment in wanted)
      continue
    for segment in wanted:
      try:
        part = cut(samples, [(segment.start, segment.stop)])
      except BadSegment as error:
        yield LeftOut(segment.id, str(error))
        continue
      yield SpeechRecord(
        id=segment.id,
        audio=encode_flac(part),
        text=segment.text,
        language=config.source,
        translation=segment.translation,
        target_language=config.target,
      )
  for wanted in waiting.values():
    yield from (LeftOut(segment.id, "recording missing") for segment in wanted)
