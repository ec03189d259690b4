"""The command that prepares data sets: a folder of records, or one line and status 2."""

import pytest
import tensorflow_datasets as tfds

from slm_jax.data.datasets.prepare import main, prepare
from slm_jax.errors import UserError


@pytest.fixture
def german(archives):
  rows = [f"{n}\t{n}.wav\tSatz {n}.\tsatz {n}\ts|a\t1600\tMALE" for n in range(3)]
  for split in ("train", "dev", "test"):
    archives.write(f"de_de/{split}.tsv", "\n".join(rows) + "\n")
    files = {f"{split}/{n}.wav": archives.audio(suffix="wav") for n in range(3)}
    archives.pack(f"de_de/audio/{split}.tar.gz", files)
  return str(archives.folder)


def test_records_are_made_once(german, tmp_path, capsys):
  arguments = ["fleurs/de_de", f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={german}"]
  assert main(arguments) == 0
  folder = capsys.readouterr().out.splitlines()[-1].removeprefix("fleurs/de_de: ")
  assert tfds.builder_from_directory(folder).info.splits["train"].num_examples == 3
  (archive,) = tmp_path.glob("manual/de_de/audio/train.tar.gz")
  archive.unlink()
  assert main(arguments) == 0  # nothing is read again


@pytest.mark.parametrize(
  "name, reason",
  [
    ("no_such_data", "cannot be prepared"),
    ("fleurs/tlh", "cannot be prepared"),
    ("covost2/de_en", "Common Voice's terms"),
  ],
)
def test_mistakes_are_one_line_and_status_2(german, archives, tmp_path, capsys, name, reason):
  archives.pack("covost_v2.de_en.tsv.tar.gz", {"covost_v2.de_en.tsv": "path\ttranslation\tsplit\n"})
  arguments = [name, f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={german}"]
  assert main(arguments) == 2
  [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
  assert reason in line
  with pytest.raises(UserError, match=reason):
    prepare(name, data_dir=str(tmp_path / "tfds"), manual_dir=german)
