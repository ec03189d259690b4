"""MLS in its published layout: one archive a language, FLAC or Opus, transcripts.txt in each split's folder."""

import hashlib

import pytest

from slm_jax.audio.files import decode_audio
from slm_jax.data.datasets.multilingual_librispeech import MultilingualLibrispeech
from slm_jax.errors import UserError


def files(archives, suffix, root="mls_german"):
  found = {f"{root}/metainfo.txt": "SPEAKER | GENDER | PARTITION\n"}
  for speaker, split in ((1844, "train"), (252, "dev"), (1054, "test")):
    keys = [f"{speaker}_931_{n:06d}" for n in range(3)]
    for key in keys:
      found[f"{root}/{split}/audio/{speaker}/931/{key}.{suffix}"] = archives.audio(suffix=suffix)
    texts = "".join(f"{key}\tder satz {key[-1]} aus {split}\n" for key in keys)
    found[f"{root}/{split}/transcripts.txt"] = texts
    found[f"{root}/{split}/segments.txt"] = "".join(f"{k}\thttp://a/b.mp3\t1\t2\n" for k in keys)
  found[f"{root}/train/limited_supervision/9hr/handles.txt"] = "1844_931_000000\n"
  return found


@pytest.mark.parametrize("config, suffix", [("german", "flac"), ("german_opus", "opus")])
def test_transcripts_meet_their_recordings(archives, prepare, config, suffix):
  archives.pack(f"mls_{config}.tar.gz", files(archives, suffix, f"mls_{config}"))
  prepared = prepare(MultilingualLibrispeech, config)
  for split, folder, speaker in (("train", "train", "1844"), ("validation", "dev", "252")):
    records = prepared.split(split)
    assert sorted(records) == [f"{speaker}_931_{n:06d}" for n in range(3)]
    for key, record in records.items():
      assert record["text"] == f"der satz {key[-1]} aus {folder}"
      assert (record["language"], record["speaker"]) == ("de", speaker)
      assert abs(len(decode_audio(record["audio"], key)) - 1_600) < 400
  assert len(prepared.split("test")) == 3


def test_unpacked_archive_gives_the_same(archives, prepare):
  for name, content in files(archives, "flac").items():
    archives.write(name, content)
  assert len(prepare(MultilingualLibrispeech, "german").split("train")) == 3


def test_archive_is_checked_against_the_published_list(archives, prepare):
  archive = archives.pack("mls_german.tar.gz", files(archives, "flac"))
  digest = hashlib.md5(archive.read_bytes()).hexdigest()
  archives.write("md5sum.txt", f"{digest}  mls_german.tar.gz\n")
  prepare(MultilingualLibrispeech, "german")
  archives.write("mls_german_opus.tar.gz", archive.read_bytes())
  archives.write("md5sum.txt", f"{'0' * 32}  mls_german_opus.tar.gz\n")
  with pytest.raises(UserError, match=f"opus.tar.gz has md5 {digest}"):
    prepare(MultilingualLibrispeech, "german_opus")


def test_recordings_and_transcripts_without_each_other_are_problems(archives, prepare):
  found = files(archives, "flac")
  del found["mls_german/dev/audio/252/931/252_931_000001.flac"]
  archives.pack("mls_german.tar.gz", found)
  with pytest.raises(UserError, match=r"split validation: 1 of 3 .*252_931_000001: recording miss"):
    prepare(MultilingualLibrispeech, "german")
  found = files(archives, "flac")
  found["mls_german/test/transcripts.txt"] = "1054_931_000000\tder satz\n"
  archives.pack("mls_german.tar.gz", found)
  with pytest.raises(UserError, match=r"split test: 2 of 3 .*no transcript"):
    prepare(MultilingualLibrispeech, "german")
  found["mls_german/test/transcripts.txt"] += "1054_931_000001 kein tab\n"
  archives.pack("mls_german.tar.gz", found)
  with pytest.raises(UserError, match=r"split test: 3 of 4 .*transcripts.txt:2: no tab"):
    prepare(MultilingualLibrispeech, "german")


def test_archive_of_another_kind_is_refused(archives, prepare):
  archives.pack("mls_german.tar.gz", {"mls_german/train/transcripts.txt": "a\tb\n"})
  with pytest.raises(UserError, match=r"has no dev/transcripts\.txt"):
    prepare(MultilingualLibrispeech, "german")
