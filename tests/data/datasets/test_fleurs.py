"""FLEURS in its published layout: TSV without header, one archive a split, translations by sentence id."""

import pytest

from slm_jax.data.datasets.fleurs import LANGUAGES, Fleurs, FleursConfig
from slm_jax.errors import UserError


def row(sentence, file, raw):
  return f"{sentence}\t{file}\t{raw}\t{raw.lower().strip('.')}\t{'|'.join(raw)}\t1600\tFEMALE"


GERMAN = [
  row(1, "11.wav", 'Er sagte "Hallo.'),  # a lone quotation mark
  row(1, "12.wav", 'Er sagte "Hallo.'),  # the same sentence by another speaker
  row(2, "21.wav", "Gut."),
  row(2, "21.wav", "Gut."),  # listed twice
  row(3, "31.wav", "Nur deutsch."),
]
ENGLISH = [row(1, "77.wav", 'He said "Hello.'), row(2, "78.wav", "Good.")]


def write_language(archives, language, rows, missing=()):
  for split in ("train", "dev", "test"):
    archives.write(f"{language}/{split}.tsv", "\n".join(rows) + "\n")
    names = {line.split("\t")[1] for line in rows if line.count("\t") == 6} - set(missing)
    files = {f"{split}/{name}": archives.audio(suffix="wav") for name in sorted(names)}
    archives.pack(f"{language}/audio/{split}.tar.gz", {**files, f"{split}/unlisted.wav": b"?"})


def test_recordings_are_paired_with_their_text(archives, prepare):
  write_language(archives, "de_de", GERMAN)
  prepared = prepare(Fleurs, "de_de")
  for split in ("train", "validation", "test"):
    records = prepared.split(split)
    assert sorted(records) == ["1-11", "1-12", "2-21", "3-31"]
    assert records["1-12"]["text"] == 'Er sagte "Hallo.'
    assert records["1-12"]["normalized_text"] == 'er sagte "hallo'
    assert records["1-12"]["audio"] == archives.audio(suffix="wav")
    assert {r["language"] for r in records.values()} == {"de_de"}
    assert {r["translation"] + r["target_language"] for r in records.values()} == {""}
  assert prepared.left_out["train"] == {"listed twice": 1}


def test_translations_are_those_of_the_same_sentence(archives, prepare):
  write_language(archives, "de_de", GERMAN)
  write_language(archives, "en_us", ENGLISH)
  prepared = prepare(Fleurs, "de_de-en_us")
  found = {key: r["translation"] for key, r in prepared.split("train").items()}
  assert found == {"1-11": 'He said "Hello.', "1-12": 'He said "Hello.', "2-21": "Good."}
  assert prepared.left_out["train"] == {"listed twice": 1, "sentence missing in en_us": 1}


def test_unpacked_archives_give_the_same(archives, prepare):
  write_language(archives, "de_de", GERMAN)
  for split in ("train", "dev", "test"):
    (archives.folder / f"de_de/audio/{split}.tar.gz").unlink()
    for line in GERMAN:
      archives.write(f"de_de/audio/{split}/{line.split(chr(9))[1]}", archives.audio(suffix="wav"))
  assert len(prepare(Fleurs, "de_de").split("train")) == 4


@pytest.mark.parametrize(
  "rows, missing", [(GERMAN, {"21.wav"}), ([*GERMAN, "9\tcut.wav\tshort"], ())]
)
def test_more_damage_than_the_budget_is_refused(archives, prepare, rows, missing):
  write_language(archives, "de_de", rows, missing)
  with pytest.raises(UserError, match=r"split train: 1 of \d examples cannot be used, at most 1%"):
    prepare(Fleurs, "de_de")


def test_damage_within_the_budget_is_counted(archives, prepare):
  rows = [row(n, f"{n}.wav", f"Satz {n}.") for n in range(100)]
  write_language(archives, "de_de", rows, missing={"7.wav"})
  prepared = prepare(Fleurs, "de_de")
  assert len(prepared.split("test")) == 99
  assert prepared.left_out["test"] == {"recording missing": 1}


def test_archives_that_are_not_there_would_be_downloaded_from_the_hub(archives, prepare):
  archives.write("de_de/train.tsv", "\n".join(GERMAN))
  with pytest.raises(
    AssertionError, match=r"google/fleurs/resolve/main/data/de_de/audio/train.tar"
  ):
    prepare(Fleurs, "de_de")


def test_there_are_102_languages_and_any_pair_can_be_made(archives, prepare):
  assert len(LANGUAGES) == len(set(LANGUAGES)) == 102
  write_language(archives, "de_de", GERMAN)
  write_language(archives, "fr_fr", [row(2, "5.wav", "Bien.")])
  records = prepare(Fleurs, FleursConfig("de_de", "fr_fr")).split("train")
  assert [(r["translation"], r["target_language"]) for r in records.values()] == [
    ("Bien.", "fr_fr")
  ]
