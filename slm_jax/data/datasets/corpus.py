"""Base of the TFDS builders: one set of fields, archives found or downloaded, what is left out counted."""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import verify
from slm_jax.errors import UserError

# Of the examples that a data set promises; CoVoST 2 lacks a few clips of most languages.
MAX_PROBLEM_SHARE = 0.01
_ARCHIVE_SUFFIX = re.compile(r"(\.tar\.gz|\.tar|\.tgz|\.zip)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRecord:
  """One utterance of a corpus. Text that a corpus does not have is "".

  Attributes:
    id: unique within the data set and split.
    audio: content of an audio file, as published wherever it is published utterance by utterance.
    text: what is said, as written.
    normalized_text: what is said, as the corpus normalises it for scoring.
    language: code of the language spoken, as the corpus writes it.
    translation: of `text`.
    target_language: of the translation.
    context: text that goes with the speech, e.g. what was said before.
    instruction: what to do with the speech, where that is part of the data.
    answer: to the instruction.
  """

  id: str
  audio: bytes
  text: str
  normalized_text: str = ""
  language: str
  speaker: str = ""
  translation: str = ""
  target_language: str = ""
  context: str = ""
  instruction: str = ""
  answer: str = ""


class SpeechCorpusBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder whose examples are `SpeechRecord`s.

  A subclass has `VERSION`, `HOMEPAGE`, `LICENCE`, `MANUAL_DOWNLOAD_INSTRUCTIONS` and
  `_split_generators`, which locates archives by `archive` and returns `_generate_examples` of each.
  """

  HOMEPAGE: str
  LICENCE: str

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {f.name: tfds.features.Text() for f in dataclasses.fields(SpeechRecord)}
    audio = tfds.features.Tensor(
      shape=(), dtype=np.bytes_
    )  # decoded later: PCM is ten times as large
    return tfds.core.DatasetInfo(
      builder=self,
      description=(type(self).__doc__ or "").strip(),
      features=tfds.features.FeaturesDict({**texts, "audio": audio}),
      homepage=self.HOMEPAGE,
      license=self.LICENCE,
      metadata=tfds.core.MetadataDict(left_out={}),
    )

  def archive(self, dl_manager: tfds.download.DownloadManager, *names: str, url: str = "") -> Path:
    """The path of an archive: below manual_dir, unpacked or not, else downloaded.

    Args:
      names: paths below manual_dir that it may have, e.g. "mls_german.tar.gz"; one without its
        suffixes is a folder that the archive was unpacked into.
      url: "" where the licence has to be accepted by hand.

    Raises:
      UserError: not there and not to be downloaded, or not what its published checksum says.
    """
    if found := self.find(dl_manager, *names):
      return found
    if not url:
      raise UserError(
        f"{self.name}: {_manual_dir(dl_manager) / names[0]} does not exist. "
        f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS or ''} Name its folder by --manual_dir"
      )
    return Path(os.fspath(dl_manager.download(url)))

  def find(self, dl_manager: tfds.download.DownloadManager, *names: str) -> Path | None:
    """As `archive`, None where none of the names is below manual_dir."""
    manual = _manual_dir(dl_manager)
    for name in names:
      for candidate in (manual / name, manual / _ARCHIVE_SUFFIX.sub("", name)):
        if candidate.exists():
          verify(candidate)
          return candidate
    return None

  def _generate_examples(
    self, split: str, found: "Iterable[SpeechRecord | LeftOut]"
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, example) of each record; counts what is left out in the data set's metadata.

    Raises:
      UserError: more than `MAX_PROBLEM_SHARE` are problems, or no record is left.
    """
    counts: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    records = 0
    for item in found:
      if isinstance(item, LeftOut):
        counts[item.reason] += 1
        if item.problem:
          problems.append(f"{item.name}: {item.reason}")
      else:
        records += 1
        yield item.id, dataclasses.asdict(item)
    total = records + len(problems)
    if len(problems) > MAX_PROBLEM_SHARE * total:
      raise UserError(
        f"{self.info.full_name}, split {split}: {len(problems)} of {total} examples cannot be used, "
        f"at most {MAX_PROBLEM_SHARE:.0%} may be; first: {'; '.join(problems[:3])}; download again"
      )
    if not records:
      raise UserError(
        f"{self.info.full_name}, split {split}: no example is left (left out: {dict(counts)}); "
        "check that manual_dir holds the archives of this data set and language"
      )
    metadata = self.info.metadata
    assert metadata is not None
    metadata["left_out"][split] = dict(counts)


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A row without an example. A `problem` is damage; otherwise the corpus is known to have such rows."""

  name: str
  reason: str
  problem: bool = True


def _manual_dir(dl_manager: tfds.download.DownloadManager) -> Path:
  """manual_dir, which need not exist where everything can be downloaded."""
  return Path(os.fspath(dl_manager._manual_dir or ""))
