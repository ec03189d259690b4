"""Archives in the layouts in which data sets are published, prepared by the project's builders."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

FORMATS = {
  "flac": {},
  "wav": {},
  "mp3": {},
  "ogg": {},
  "opus": {"format": "OGG", "subtype": "OPUS"},
}


class Archives:
  """Writes archives below one folder."""

  def __init__(self, folder):
    self.folder = folder

  def audio(self, seconds=0.1, suffix="flac", rate=16_000, tone=440.0):
    """Content of an audio file: a tone."""
    samples = 0.3 * np.sin(2 * np.pi * tone * np.arange(round(seconds * rate)) / rate)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": suffix.upper(), **FORMATS[suffix]})
    return file.getvalue()

  def pack(self, name, files):
    """An archive (by its suffix) of name → str or bytes."""
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {n: data.encode() if isinstance(data, str) else data for n, data in files.items()}
    if name.endswith(".zip"):
      with zipfile.ZipFile(path, "w") as archive:
        for member, data in contents.items():
          archive.writestr(member, data)
      return path
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
      for member, data in contents.items():
        entry = tarfile.TarInfo(member)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path

  def write(self, name, content):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class Prepared:
  """A data set that has been prepared; `split` gives its records by id."""

  def __init__(self, builder):
    self.builder = builder

  def split(self, name):
    found = {}
    for example in self.builder.as_dataset(split=name).as_numpy_iterator():
      texts = {k: v if k == "audio" else v.decode() for k, v in example.items()}
      assert texts["id"] not in found
      found[texts["id"]] = texts
    return found

  @property
  def left_out(self):
    again = tfds.builder_from_directory(self.builder.data_dir)
    return again.info.metadata["left_out"]


@pytest.fixture
def archives(tmp_path):
  return Archives(tmp_path / "manual")


@pytest.fixture
def prepare(tmp_path):
  """Prepares a builder class from the archives; nothing is downloaded."""

  def run(builder_class, config=None, **kwargs):
    builder = builder_class(config=config, data_dir=str(tmp_path / "tfds"), **kwargs)
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=str(tmp_path / "manual"))
    )
    return Prepared(builder)

  return run


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch):
  def refuse(self, url):
    raise AssertionError(f"a test must not download {url}")

  monkeypatch.setattr(tfds.download.DownloadManager, "download", refuse)
