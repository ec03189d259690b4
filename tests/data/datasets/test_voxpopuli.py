"""VoxPopuli in its published layouts: annotation and archives of sessions, or the segments cut from them."""

import gzip

import numpy as np
import pytest

from slm_jax.audio.files import decode_audio
from slm_jax.data.datasets.voxpopuli import Voxpopuli
from slm_jax.errors import UserError

SESSION = "20090112-0900-PLENARY-3-de"
LATER = "20130611-0900-PLENARY-7-de"
HEADER = (
  "session_id|id_|original_text|normed_text|speaker_id|split|gender|is_gold_transcript|accent|vad"
)


def line(session, segment, split, vad, text="Frau Präsidentin!", normed="frau präsidentin"):
  return f"{session}|{segment}|{text}|{normed}|96{segment[-1]}|{split}|male|False|None|{vad}"


LINES = [
  line(SESSION, "0", "train", "[[0.1, 0.3], [0.5, 0.6]]"),
  line(SESSION, "1", "dev", "[[0.6, 0.7]]", '"Ja|nein"', "ja nein"),  # quoted, as CSV is
  line(LATER, "2", "test", "[[0.0, 0.2, 'x']]", "", "nur normalisiert"),
  line(LATER, "3", "train", "[[0.3, 0.4]]", "", ""),
  line(LATER, "4", "invalid", "[]"),
]


def write_sessions(archives, lines, with_later=True):
  table = "\n".join([HEADER, *lines]) + "\n"
  archives.write("asr_de.tsv.gz", gzip.compress(table.encode()))
  for year, session in ((2009, SESSION), (2013, LATER)):
    # Half a second of one tone, then another.
    audio = archives.audio(1.0, "ogg", tone=500.0)
    name = f"original/{year}/{session}_original.ogg"
    files = {name: audio, f"original/{year}/other_original.ogg": b"not looked at"}
    if session == LATER and not with_later:
      del files[name]
    archives.pack(f"original_{year}.tar", files)


def test_segments_are_cut_out_of_sessions(archives, prepare):
  write_sessions(archives, LINES)
  prepared = prepare(Voxpopuli, "de")
  [(key, record)] = prepared.split("train").items()
  assert key == f"{SESSION}-0"
  samples = decode_audio(record["audio"], key)
  assert len(samples) == 4_800  # both spans
  peak = np.argmax(np.abs(np.fft.rfft(samples))) * 16_000 / len(samples)
  assert peak == pytest.approx(500, abs=15)
  assert (record["text"], record["normalized_text"]) == ("Frau Präsidentin!", "frau präsidentin")
  assert (record["speaker"], record["language"]) == ("960", "de")
  assert prepared.split("validation")[f"{SESSION}-1"]["text"] == "Ja|nein"
  assert prepared.split("test")[f"{LATER}-2"]["normalized_text"] == "nur normalisiert"
  assert prepared.left_out == {"train": {"no transcript": 1}, "validation": {}, "test": {}}


@pytest.mark.parametrize(
  "vad, reason",
  [
    ("[[0.5, 2.5]]", "ends at 2.5 s, its recording at 1.00 s"),
    ("[]", "no time is given"),
    ("[[0.5, 0.5]]", "is no segment"),
    ("__import__('os')", "cannot be read"),
  ],
)
def test_times_outside_of_the_recording_are_problems(archives, prepare, vad, reason):
  write_sessions(archives, [line(SESSION, "0", "train", vad), *LINES[1:]])
  with pytest.raises(UserError, match=f"{SESSION}-0: .*{reason}"):
    prepare(Voxpopuli, "de")


def test_a_row_with_too_few_columns_is_a_problem(archives, prepare):
  write_sessions(archives, [*LINES, f"{SESSION}|9|cut"])
  with pytest.raises(UserError, match=r"split train: 1 of .*asr_de.tsv.gz:\d+: its columns"):
    prepare(Voxpopuli, "de")


def test_missing_sessions_and_archives_are_named(archives, prepare):
  write_sessions(archives, LINES, with_later=False)
  with pytest.raises(UserError, match=f"{LATER}-3: recording of its session missing"):
    prepare(Voxpopuli, "de")
  (archives.folder / "original_2013.tar").unlink()
  with pytest.raises(AssertionError, match="download .*/audios/original_2013.tar"):
    prepare(Voxpopuli, "de")


@pytest.mark.parametrize("packed", [False, True])
def test_segments_that_are_cut_already(archives, prepare, packed):
  header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"
  files = {}
  for split in ("train", "dev", "test"):
    key = f"{SESSION}-{split}"
    row = f'{key}\tEr sagte "Ja.\ter sagte ja\tNone\t{split}\tmale\tFalse\tNone'
    files[f"asr_{split}.tsv"] = f"{header}\n{row}\n"
    files[f"2009/{key}.ogg"] = archives.audio(suffix="ogg")
  if packed:
    archives.pack("de.tar", {f"de/{name}": content for name, content in files.items()})
  else:
    for name, content in files.items():
      archives.write(f"transcribed_data/de/{name}", content)
  prepared = prepare(Voxpopuli, "de")
  [record] = prepared.split("validation").values()
  assert (record["id"], record["text"]) == (f"{SESSION}-dev", 'Er sagte "Ja.')
  assert record["speaker"] == "" and record["audio"] == files[f"2009/{SESSION}-dev.ogg"]
