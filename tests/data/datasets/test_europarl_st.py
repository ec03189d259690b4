"""Europarl-ST in its published layout: whole speeches as M4A, and line by line where the sentences lie in them."""

import io

import av
import numpy as np
import pytest

from slm_jax.audio.files import decode_audio
from slm_jax.data.datasets.europarl_st import EuroparlSt
from slm_jax.errors import UserError

SPEECH = "en.20080903.21.3-183"


def m4a(seconds=1.0, rate=16_000):
  """Half a second of 300 Hz, then 900 Hz."""
  time = np.arange(round(seconds * rate)) / rate
  samples = 0.3 * np.sin(2 * np.pi * np.where(time < 0.5, 300, 900) * time)
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as container:
    stream = container.add_stream("aac", rate=rate, layout="mono")
    frame = av.AudioFrame.from_ndarray(samples.astype("f4")[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    container.mux([*stream.encode(frame), *stream.encode(None)])
  return file.getvalue()


SEGMENTS = [
  (f"{SPEECH} 0.05 0.45", "Mr President,\u2028thank you.", "Herr Präsident, vielen Dank."),
  (f"{SPEECH} 0.55 0.95", 'He said "no.', 'Er sagte "nein.'),
]


def files(segments=SEGMENTS, folders=("train", "train-noisy", "dev", "test")):
  found = {f"v1.1/en/audios/{SPEECH}.m4a": m4a(), "v1.1/de/audios/other.m4a": b"not looked at"}
  for folder in folders:
    place = f"v1.1/en/de/{folder}"
    for file, column in (("segments.lst", 0), ("segments.en", 1), ("segments.de", 2)):
      found[f"{place}/{file}"] = "".join(row[column] + "\n" for row in segments)
    found[f"{place}/speeches.lst"] = SPEECH + "\n"
    found[f"{place}/speeches.en"] = "Mr President, thank you. He said no.\n"
  return found


def test_sentences_are_cut_out_of_speeches(archives, prepare):
  archives.pack("v1.1.tar.gz", files())
  prepared = prepare(EuroparlSt, "en_de")
  for split in ("train", "train_noisy", "validation", "test"):
    records = prepared.split(split)
    assert sorted(records) == [f"{SPEECH}_000000", f"{SPEECH}_000001"]
  for n, (key, tone) in enumerate(zip(sorted(records), (300, 900), strict=True)):
    record = records[key]
    assert (record["text"], record["translation"]) == SEGMENTS[n][1:]
    assert (record["language"], record["target_language"]) == ("en", "de")
    samples = decode_audio(record["audio"], key)
    assert len(samples) == 6_400
    peak = np.argmax(np.abs(np.fft.rfft(samples))) * 16_000 / len(samples)
    assert peak == pytest.approx(tone, abs=20)


def test_unpacked_and_without_the_noisy_part(archives, prepare):
  for name, content in files(folders=("train", "dev", "test")).items():
    archives.write(name, content)
  prepared = prepare(EuroparlSt, "en_de")
  assert set(prepared.builder.info.splits) == {"train", "validation", "test"}


def test_lists_of_different_lengths_are_refused(archives, prepare):
  found = files()
  found["v1.1/en/de/dev/segments.de"] = "Nur eine Zeile.\n"
  archives.pack("v1.1.tar.gz", found)
  with pytest.raises(
    UserError, match=r"en_de/dev: lines differ \(.*segments.en 2, segments.de 1\)"
  ):
    prepare(EuroparlSt, "en_de")


@pytest.mark.parametrize(
  "place, reason",
  [
    (f"{SPEECH} 0.5 3.0", "ends at 3.0 s"),
    ("en.20080903.9-9 0.1 0.2", "recording missing"),
    (f"{SPEECH} 0.5", "segments.lst:2: .* is not a recording, its start and its end"),
  ],
)
def test_bad_places_are_named(archives, prepare, place, reason):
  archives.pack("v1.1.tar.gz", files([SEGMENTS[0], (place, "a", "b")]))
  with pytest.raises(UserError, match=reason):
    prepare(EuroparlSt, "en_de")


def test_licence_has_to_be_accepted_by_hand(archives, prepare):
  archives.write("nothing", "")
  with pytest.raises(UserError, match="The licence forbids commercial use"):
    prepare(EuroparlSt, "en_de")
