"""CoVoST 2: Common Voice recordings with translations, from 21 languages into English and from English into 15."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import decode, members, read_text
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.errors import UserError

URL = "https://dl.fbaipublicfiles.com/covost"
INTO_ENGLISH = ("fr de es ca it ru zh-CN pt fa et mn nl tr ar sv-SE lv sl ta ja id cy").split()
FROM_ENGLISH = "de tr fa sv-SE mn zh-CN cy ca sl et id ar ta lv ja".split()
# Values of the column `split` → split. CoVoST adds to Common Voice's own training set.
SPLITS = {"train": ("train", "train_covost"), "validation": ("dev",), "test": ("test",)}
_COMMON_VOICE = "cv-corpus-4-2019-12-10"

_Row = Mapping[str, str]


class Covost2Config(tfds.core.BuilderConfig):
  """Speech of `source` with its translation into `target`, in CoVoST's codes."""

  def __init__(self, source: str, target: str):
    super().__init__(name=f"{source}_{target}", description="")
    self.source = source
    self.target = target


class Covost2(SpeechCorpusBuilder):
  """CoVoST 2. Config "de_en" is German speech of Common Voice 4 with English translations.

  Transcripts come from Common Voice's validated.tsv, translations and splits from CoVoST; only what
  both have is used, as the data set's own script does.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://github.com/facebookresearch/covost"
  LICENCE = "CC0"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Common Voice's terms have to be accepted by hand: from commonvoice.mozilla.org download Common "
    f"Voice Corpus 4 of the language spoken and put it there as {_COMMON_VOICE}/<language>.tar.gz, "
    "packed or unpacked. CoVoST's covost_v2.<source>_<target>.tsv.tar.gz may lie beside it."
  )
  BUILDER_CONFIGS = [
    *(Covost2Config(language, "en") for language in INTO_ENGLISH),
    *(Covost2Config("en", language) for language in FROM_ENGLISH),
  ]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    config = self.builder_config
    assert isinstance(config, Covost2Config)
    source = config.source
    # First what cannot be downloaded.
    common_voice = self.archive(
      dl_manager,
      f"{_COMMON_VOICE}/{source}.tar.gz",
      f"{_COMMON_VOICE}-{source}.tar.gz",
      f"{source}.tar.gz",
    )
    table = f"covost_v2.{config.name}.tsv.tar.gz"
    translations = read_text(
      self.archive(dl_manager, table, f"covost_v2.{config.name}.tsv", url=f"{URL}/{table}"), ".tsv"
    )
    rows, damaged = _parted(_rows(translations, table, ("path", "translation", "split")))
    spoken, damaged_too = _spoken(common_voice)
    # A damaged row names no split.
    found: dict[str, list[_Row | LeftOut]] = {"train": [*damaged, *damaged_too]}
    for split, values in SPLITS.items():
      found.setdefault(split, []).extend(row for row in rows if row["split"] in values)
    return {
      split: self._generate_examples(split, _records(common_voice, found[split], spoken, config))
      for split in SPLITS
    }


def _records(
  common_voice: Path,
  rows: list[_Row | LeftOut],
  spoken: Mapping[str, _Row],
  config: Covost2Config,
) -> Iterator[SpeechRecord | LeftOut]:
  wanted: dict[str, _Row] = {}
  for row in rows:
    if isinstance(row, LeftOut):
      yield row
      continue
    clip = _stem(row["path"])
    if clip in wanted:
      yield LeftOut(clip, "listed twice", problem=False)
    elif clip not in spoken:
      yield LeftOut(clip, "not in validated.tsv", problem=False)
    elif not row["translation"].strip():
      yield LeftOut(clip, "no translation", problem=False)
    elif re.search(r"\bREMOVE\b", row["translation"]):
      yield LeftOut(clip, "marked REMOVE by its translator", problem=False)
    else:
      wanted[clip] = row
  for name, read in members(common_voice):
    path = PurePosixPath(name)
    if path.parent.name != "clips" or not (row := wanted.pop(path.stem, None)):
      continue
    audio = read()
    if not audio:
      # About 500 of Common Voice 3 and 4 are.
      yield LeftOut(path.stem, "clip of 0 bytes", problem=False)
      continue
    yield SpeechRecord(
      id=path.stem,
      audio=audio,
      text=_unquoted(spoken[path.stem]["sentence"]),
      language=config.source,
      speaker=spoken[path.stem]["client_id"][:16],
      translation=_unquoted(row["translation"]),
      target_language=config.target,
    )
  for clip in wanted:
    yield LeftOut(clip, "clip missing")


def _spoken(common_voice: Path) -> tuple[dict[str, _Row], list[LeftOut]]:
  """Clip → its row in Common Voice's validated.tsv, the first where there are several; damaged rows."""
  for name, read in members(common_voice):
    if PurePosixPath(name).name == "validated.tsv":
      place = f"{common_voice}:{name}"
      columns = ("path", "sentence", "client_id")
      rows, damaged = _parted(_rows(decode(read(), place), place, columns))
      found: dict[str, _Row] = {}
      for row in rows:
        found.setdefault(_stem(row["path"]), row)
      return found, damaged
  raise UserError(f"{common_voice} has no validated.tsv; expected an archive of Common Voice 4")


def _parted(rows: Iterable[_Row | LeftOut]) -> tuple[list[_Row], list[LeftOut]]:
  found, damaged = [], []
  for row in rows:
    (damaged if isinstance(row, LeftOut) else found).append(row)
  return found, damaged


def _rows(content: str, name: str, columns: tuple[str, ...]) -> Iterator[_Row | LeftOut]:
  """Rows of a TSV with header. Quotation marks do not quote; a backslash takes the next as it is."""
  lines = [line.rstrip("\r") for line in content.split("\n") if line.strip()]
  header = lines[0].split("\t") if lines else []
  if missing := [column for column in columns if column not in header]:
    raise UserError(f"{name} has no column {missing[0]!r}, but {header[:20]}; download it again")
  for number, line in enumerate(lines[1:], start=2):
    values = [re.sub(r"\\(.)", r"\1", value) for value in re.split(r"(?<!\\)\t", line)]
    if len(values) != len(header):
      yield LeftOut(f"{name}:{number}", f"{len(values)} columns, expected {len(header)}")
    else:
      yield dict(zip(header, values, strict=True))


def _unquoted(text: str) -> str:
  """The text of a value that was quoted as CSV is when it was written: `\"""Yes"", he said."`."""
  inner = text[1:-1]
  if text.startswith('"') and text.endswith('"') and '""' in inner:
    if '"' not in inner.replace('""', ""):
      return inner.replace('""', '"')
  return text


def _stem(path: str) -> str:
  return PurePosixPath(path).stem
