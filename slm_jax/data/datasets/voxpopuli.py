"""VoxPopuli: speeches of the European Parliament in 16 languages."""

import ast
import csv
import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from slm_jax.audio.files import decode_audio
from slm_jax.data.datasets.archives import members, read_text
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.data.datasets.segments import BadSegment, cut, encode_flac
from slm_jax.errors import UserError

URL = "https://dl.fbaipublicfiles.com/voxpopuli"
LANGUAGES = "en de fr es pl it ro hu cs nl fi hr sk sl et lt".split()
YEARS = range(2009, 2021)
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
_COLUMNS = ("session_id", "id_", "original_text", "normed_text", "speaker_id", "split", "vad")
_MANIFEST_COLUMNS = ("id", "raw_text", "normalized_text", "speaker_id", "split")

_Row = Mapping[str, str]


class VoxpopuliConfig(tfds.core.BuilderConfig):
  """The language spoken; "en_accented" is English of speakers of other languages, a test set alone."""

  def __init__(self, language: str):
    super().__init__(name=language, description="")
    self.language = language


class Voxpopuli(SpeechCorpusBuilder):
  """VoxPopuli's transcribed part. Config "de" is German.

  Made of the segments that VoxPopuli's own script has cut, where they are there, else of the
  recordings of whole sessions and the times in the annotation.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://github.com/facebookresearch/voxpopuli"
  LICENCE = "CC0; the recordings under the European Parliament's legal notice"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put there the folder (or .tar) transcribed_data/<language> that voxpopuli.get_asr_data writes, or "
    "asr_<language>.tsv.gz and the archives original_<year>.tar of 2009 to 2020."
  )
  BUILDER_CONFIGS = [VoxpopuliConfig(language) for language in (*LANGUAGES, "en_accented")]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    config = self.builder_config
    assert isinstance(config, VoxpopuliConfig)
    language = config.language
    segmented = self.find(dl_manager, f"transcribed_data/{language}.tar", f"{language}.tar")
    splits = {"test": "test"} if language == "en_accented" else SPLITS
    if segmented:
      return {
        split: self._generate_examples(split, _segments(segmented, file, language))
        for split, file in splits.items()
      }
    table = f"asr_{language}.tsv.gz"
    annotation = self.archive(dl_manager, table, url=f"{URL}/annotations/asr/{table}")
    found = list(_rows(annotation))
    rows = [row for row in found if not isinstance(row, LeftOut)]
    damaged = [row for row in found if isinstance(row, LeftOut)]
    years = {row["session_id"][:4] for row in rows}
    archives = [
      self.archive(dl_manager, f"original_{year}.tar", url=f"{URL}/audios/original_{year}.tar")
      for year in map(str, YEARS)
      if year in years
    ]
    # A damaged row names no split; it counts in the first.
    return {
      split: self._generate_examples(
        split,
        itertools.chain(
          damaged if split == next(iter(splits)) else (),
          _records(archives, [row for row in rows if row["split"] == file], language),
        ),
      )
      for split, file in splits.items()
    }


def _records(
  archives: list[Path], rows: list[_Row], language: str
) -> Iterator[SpeechRecord | LeftOut]:
  """Segments cut out of sessions, `original/<year>/<session>_original.ogg`."""
  sessions: dict[str, list[_Row]] = {}
  for row in rows:
    sessions.setdefault(row["session_id"], []).append(row)
  for archive in archives:
    for name, read in members(archive):
      session = PurePosixPath(name).stem.removesuffix("_original")
      if session not in sessions:
        continue
      wanted = sessions.pop(session)
      try:
        samples = decode_audio(read(), f"{archive}:{name}")
      except UserError as error:
        yield from (LeftOut(_key(row), str(error)) for row in wanted)
        continue
      for row in wanted:
        try:
          segment = cut(samples, _spans(row["vad"]))
        except BadSegment as error:
          yield LeftOut(_key(row), str(error))
          continue
        texts = (row["original_text"], row["normed_text"])
        yield _record(_key(row), encode_flac(segment), *texts, row["speaker_id"], language)
  for wanted in sessions.values():
    yield from (LeftOut(_key(row), "recording of its session missing") for row in wanted)


def _segments(archive: Path, file: str, language: str) -> Iterator[SpeechRecord | LeftOut]:
  """Segments that are cut already, `<year>/<id>.ogg`, and `asr_<split>.tsv`."""
  rows: dict[str, _Row] = {}
  content = read_text(archive, f"asr_{file}.tsv")
  for row in _table(content, f"{archive}:asr_{file}.tsv", "\t", _MANIFEST_COLUMNS):
    if isinstance(row, LeftOut):
      yield row
    else:
      rows[row["id"]] = row
  for name, read in members(archive):
    path = PurePosixPath(name)
    if path.suffix != ".ogg" or not (row := rows.pop(path.stem, None)):
      continue
    texts = (row["raw_text"], row["normalized_text"])
    yield _record(path.stem, read(), *texts, row["speaker_id"], language)
  for key in rows:
    yield LeftOut(key, "recording missing")


def _record(
  key: str, audio: bytes, text: str, normalized_text: str, speaker: str, language: str
) -> SpeechRecord | LeftOut:
  if not text.strip() and not normalized_text.strip():
    return LeftOut(key, "no transcript", problem=False)
  return SpeechRecord(
    id=key,
    audio=audio,
    text=text,
    normalized_text=normalized_text,
    language=language.removesuffix("_accented"),
    speaker="" if speaker == "None" else speaker,
  )


def _rows(annotation: Path) -> Iterator[_Row | LeftOut]:
  return _table(read_text(annotation), str(annotation), "|", _COLUMNS)


def _table(
  content: str, name: str, delimiter: str, columns: tuple[str, ...]
) -> Iterator[_Row | LeftOut]:
  quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL  # as each is written
  reader = csv.DictReader(io.StringIO(content), delimiter=delimiter, quoting=quoting)
  header = list(reader.fieldnames or [])
  if missing := [column for column in columns if column not in header]:
    raise UserError(f"{name} has no column {missing[0]!r}, but {header[:20]}; download it again")
  try:
    for row in reader:
      if None in row or None in row.values():
        yield LeftOut(
          f"{name}:{reader.line_num}", f"its columns are not the {len(header)} expected"
        )
      else:
        yield row
  except csv.Error as error:  # a quotation mark that nothing closes
    raise UserError(f"{name}:{reader.line_num} is no table ({error}); download it again") from error


def _spans(vad: str) -> list[tuple[float, float]]:
  """Times where somebody speaks, in seconds: "[[12.3, 15.0, …], …]"."""
  try:
    return [(float(span[0]), float(span[1])) for span in ast.literal_eval(vad)]
  except (ValueError, SyntaxError, TypeError, IndexError) as error:
    raise BadSegment(f"its times {vad[:40]!r} cannot be read") from error


def _key(row: _Row) -> str:
  return f"{row['session_id']}-{row['id_']}"
