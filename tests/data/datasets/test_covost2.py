"""CoVoST 2 in its published layout: a packed TSV beside a Common Voice 4 archive, and the quirks of both."""

import pytest

from slm_jax.data.datasets.covost2 import FROM_ENGLISH, INTO_ENGLISH, Covost2
from slm_jax.errors import UserError

CV = "cv-corpus-4-2019-12-10"
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"


def clip(n):
  return f"common_voice_de_{17_000_000 + n}.mp3"


# Clip → sentence, translation, CoVoST's split.
SENTENCES = {
  1: ("Guten Morgen.", "Good morning.", "train"),
  2: ('Er rief: "Halt!', 'He shouted: "Stop!', "train_covost"),  # a lone quotation mark
  3: ('"""Ja"", sagte er."', '"""Yes"", he said."', "train"),  # quoted twice over
  4: ("Aus\\\\ein", "Out\\\\in", "dev"),  # an escaped backslash
  5: ('"Nein."', '"No."', "test"),
}
EXPECTED = {
  1: ("Guten Morgen.", "Good morning."),
  2: ('Er rief: "Halt!', 'He shouted: "Stop!'),
  3: ('"Ja", sagte er.', '"Yes", he said.'),
  4: ("Aus\\ein", "Out\\in"),
  5: ('"Nein."', '"No."'),
}


def covost(rows):
  lines = ["path\ttranslation\tsplit"]
  return "\n".join(lines + [f"{clip(n)}\t{tr}\t{split}" for n, tr, split in rows]) + "\n"


def common_voice(archives, rows, clips=None, prefix="", empty=()):
  lines = [HEADER] + [f"{n:0128x}\t{clip(n)}\t{text}\t2\t0\t\t\t" for n, text in rows]
  names = {n for n, _ in rows} if clips is None else clips
  audio = archives.audio(suffix="mp3", rate=48_000)
  files = {f"{prefix}clips/{clip(n)}": b"" if n in empty else audio for n in sorted(names)}
  return {
    f"{prefix}train.tsv": HEADER,
    **files,
    f"{prefix}validated.tsv": "\n".join(lines) + "\n",  # after the clips, as stored
    f"{prefix}clips/common_voice_de_99.mp3": b"unlisted",
  }


def write(archives, extra_covost=(), extra_spoken=(), clips=None, prefix="", empty=(), broken=""):
  table = [(n, translation, split) for n, (_, translation, split) in SENTENCES.items()]
  spoken = [(n, text) for n, (text, _, _) in SENTENCES.items()]
  tsv = covost([*table, *extra_covost]) + broken
  archives.pack("covost_v2.de_en.tsv.tar.gz", {"covost_v2.de_en.tsv": tsv})
  files = common_voice(archives, [*spoken, *extra_spoken], clips, prefix, empty)
  archives.pack(f"{CV}/de.tar.gz", files)


@pytest.mark.parametrize("prefix", ["", "./", f"{CV}/de/"])
def test_texts_speakers_and_splits(archives, prepare, prefix):
  write(archives, prefix=prefix)
  prepared = prepare(Covost2, "de_en")
  found = {split: prepared.split(split) for split in ("train", "validation", "test")}
  assert {split: len(records) for split, records in found.items()} == {
    "train": 3,
    "validation": 1,
    "test": 1,
  }
  for records in found.values():
    for key, record in records.items():
      n = int(key.removeprefix("common_voice_de_")) - 17_000_000
      assert (record["text"], record["translation"]) == EXPECTED[n]
      assert record["speaker"] == f"{n:0128x}"[:16]
      assert (record["language"], record["target_language"]) == ("de", "en")
      assert len(record["audio"]) > 100
  assert prepared.left_out == {"train": {}, "validation": {}, "test": {}}


def test_known_quirks_are_counted(archives, prepare):
  write(
    archives,
    extra_covost=[
      (1, "Good morning again.", "train"),  # the clip twice, with another translation
      (60, "Never validated.", "train"),
      (61, " ", "train"),
      (63, "REMOVE not German", "train"),
      (64, "Empty clip.", "train"),
    ],
    extra_spoken=[
      (1, "Zweite Zeile."),
      (61, "Ohne Übersetzung."),
      (62, "Nur hier."),
      (63, "?"),
      (64, "Leer."),
    ],
    empty={64},
  )
  prepared = prepare(Covost2, "de_en")
  records = prepared.split("train")
  assert len(records) == 3
  assert records[clip(1)[:-4]]["translation"] == "Good morning."
  assert records[clip(1)[:-4]]["text"] == "Guten Morgen."
  assert prepared.left_out["train"] == {
    "listed twice": 1,
    "not in validated.tsv": 1,
    "no translation": 1,
    "marked REMOVE by its translator": 1,
    "clip of 0 bytes": 1,
  }


def test_missing_clips_are_borne_up_to_the_budget(archives, prepare):
  write(archives, clips={1, 2, 4, 5})
  with pytest.raises(
    UserError, match=r"split train: 1 of 3 .* common_voice_de_17000003: clip miss"
  ):
    prepare(Covost2, "de_en")
  more = range(100, 300)
  write(
    archives,
    broken="one column\n",
    extra_covost=[(n, "More.", "train") for n in more],
    extra_spoken=[(n, "Mehr.") for n in more],
    clips={1, 2, 4, 5, *more},
  )
  prepared = prepare(Covost2, "de_en")
  assert len(prepared.split("train")) == 202
  assert prepared.left_out["train"] == {"clip missing": 1, "1 columns, expected 3": 1}


def test_without_common_voice_its_terms_are_named(archives, prepare):
  archives.pack("covost_v2.de_en.tsv.tar.gz", {"covost_v2.de_en.tsv": covost([])})
  with pytest.raises(
    UserError, match=r"de\.tar\.gz does not exist\. Common Voice's terms have to be"
  ):
    prepare(Covost2, "de_en")


def test_another_archive_is_refused(archives, prepare):
  write(archives)
  archives.pack(f"{CV}/de.tar.gz", {"readme.txt": "?"})
  with pytest.raises(UserError, match="has no validated.tsv"):
    prepare(Covost2, "de_en")
  archives.pack(f"{CV}/de.tar.gz", {"validated.tsv": "path\ttext\n"})
  with pytest.raises(UserError, match="has no column 'sentence'"):
    prepare(Covost2, "de_en")


def test_translation_directions():
  names = {config.name for config in Covost2.BUILDER_CONFIGS}
  assert len(INTO_ENGLISH) == 21 and len(FROM_ENGLISH) == 15 and len(names) == 36
  assert {"de_en", "en_de", "zh-CN_en", "en_sv-SE"} <= names
