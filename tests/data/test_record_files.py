"""The same recordings from every kind of source, and what is lost when a file of one is damaged."""

import io
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import seqio
import soundfile
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from slm_jax.data.record_source import RecordSettings, RecordSource, Split
from slm_jax.data.record_splits import make_splits, open_table
from slm_jax.data.tfds_table import TfdsTable
from slm_jax.errors import UserError

COUNT, RATE = 12, 8_000
TEXTS = [f"wörd {n}" for n in range(COUNT)]


def tone(number):
  return (8_000 * np.sin(np.arange(800) * (number + 1) / 40)).astype(np.int16)


def flac(number):
  file = io.BytesIO()
  soundfile.write(file, tone(number), RATE, format="FLAC")
  return file.getvalue()


def proto(number, audio=None):
  """A `tf.train.Example` whose audio is a file's bytes, or PCM16 as it is."""
  features = {"audio": flac(number) if audio is None else audio, "text": TEXTS[number].encode()}
  lists = {k: tf.train.BytesList(value=[v]) for k, v in features.items()}
  return tf.train.Example(
    features=tf.train.Features(
      feature={k: tf.train.Feature(bytes_list=v) for k, v in lists.items()}
    )
  ).SerializeToString()


class ToneSpeech(tfds.core.GeneratorBasedBuilder):
  """A data set of the tones for TFDS."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "audio": tfds.features.Audio(sample_rate=RATE),
      "text": tfds.features.Text(),
      "language": tfds.features.ClassLabel(names=["de", "en"]),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number in range(COUNT):
      audio = tone(number).astype(np.int64)
      yield f"{number:03d}", {"audio": audio, "text": TEXTS[number], "language": "en"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """The twelve tones in every format; returns their folder."""
  root = tmp_path_factory.mktemp("data")
  folder = root / "folder" / "speaker"
  folder.mkdir(parents=True)
  rows = []
  for number, text in enumerate(TEXTS):
    (folder / f"{number:02d}.flac").write_bytes(flac(number))
    (folder / f"{number:02d}.txt").write_text(text + "\n")
    rows.append({"audio": f"folder/speaker/{number:02d}.flac", "text": text})
  (root / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  table = "".join(f"{row['audio']}\t{row['text']}\r\n" for row in rows)
  (root / "m.tsv").write_text("\ufeffaudio\ttext\r\n" + table)
  (root / "m.csv").write_text(
    "text,audio\n" + "".join(f'"{r["text"]}",{r["audio"]}\n' for r in rows)
  )
  half = COUNT // 2
  for part, numbers in enumerate((range(half), range(half, COUNT))):
    ending = f"-{part:05d}-of-00002"
    with tf.io.TFRecordWriter(str(root / f"m.tfrecord{ending}")) as writer:
      for number in numbers:
        writer.write(proto(number))
    writer = ArrayRecordWriter(str(root / f"m.array_record{ending}"), "group_size:1")
    for number in numbers:
      writer.write(proto(number))
    writer.close()
    audio = [{"bytes": flac(number), "path": None} for number in numbers]
    columns = pyarrow.table({"audio": audio, "text": [TEXTS[number] for number in numbers]})
    pyarrow.parquet.write_table(columns, root / f"m{ending}.parquet", row_group_size=4)
  ToneSpeech(data_dir=str(root / "tfds")).download_and_prepare()
  return root


SOURCES = {
  "jsonl": "m.jsonl",
  "tsv": "m.tsv",
  "csv": "m.csv",
  "folder": "folder",
  "tfrecord": "m.tfrecord*",
  "array_record": "m.array_record*",
  "parquet": "m*.parquet",
}


def source_of(source, *, share=0.5, splits=None, **settings):
  parts = make_splits(source, splits or {"train": 1.0}, split_by="", where={})
  return RecordSource(parts, RecordSettings(**settings), max_problem_share=share)


def examples(source, split="train"):
  return list(source.make_examples(split, 0, source.num_input_examples(split)))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_recordings(data, kind):
  source = source_of(str(data / SOURCES[kind]), language="de")
  made = examples(source)
  assert not source.problems
  assert [example["target"].decode() for example in made] == TEXTS
  reference = examples(source_of(str(data / "m.jsonl")))
  for example, other in zip(made, reference, strict=True):
    assert example["audio"] == other["audio"] and example["language"] == b"de"
  assert len({example["id"] for example in made}) == COUNT
  # Any part of a split is what it is as part of the whole.
  assert list(source.make_examples("train", 3, 9)) == made[3:9]


def test_tfds_gives_the_same_recordings_and_its_labels_by_name(data, monkeypatch):
  folder = str(next((data / "tfds").glob("*/1.0.0")))
  source = RecordSource({"train": Split(table=TfdsTable(folder, "train"))}, RecordSettings())
  made = examples(source)
  reference = examples(source_of(str(data / "m.jsonl")))
  by_text = {example["target"]: example["audio"] for example in reference}
  assert {example["target"]: example["audio"] for example in made} == by_text
  assert {example["language"] for example in made} == {b"en"}
  assert list(source.make_examples("train", 3, 9)) == made[3:9]
  part = RecordSource({"train": Split(table=TfdsTable(folder, "train[25%:75%]"))}, RecordSettings())
  assert [e["target"] for e in examples(part)] == [e["target"] for e in made[3:9]]
  with pytest.raises(UserError, match=r"no split 'dev'; it has \['train'\]"):
    len(TfdsTable(folder, "dev"))
  with pytest.raises(UserError, match="TFDS knows no such data set"):
    len(TfdsTable("no_such_speech", "train"))
  monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(data / "tfds"))
  with pytest.raises(UserError, match="tfds:tone_speech:9.9.9: .*version 9.9.9"):
    len(TfdsTable("tone_speech:9.9.9", "train"))


@pytest.mark.parametrize("kind", SOURCES)
def test_shares_are_disjoint_complete_and_stay_when_data_are_added(data, kind):
  shares = {"train": 0.6, "validation": 0.3, "test": 0.1}
  source = source_of(str(data / SOURCES[kind]), splits=shares, share=1.0)
  found = {}
  for split in shares:
    try:
      found[split] = {example["id"] for example in examples(source, split)}
    except UserError as error:  # a tenth of twelve may be none
      assert "has none" in str(error)
      found[split] = set()
  assert sum(map(len, found.values())) == len(set.union(*found.values())) == COUNT
  assert len(found["train"]) > len(found["test"])


def test_bare_samples_need_a_rate(tmp_path):
  with tf.io.TFRecordWriter(str(tmp_path / "pcm.tfrecord")) as writer:
    for number in range(3):
      writer.write(proto(number, tone(number).tobytes()))
  source = source_of(tmp_path / "pcm.tfrecord", share=1.0)
  assert not examples(source) and "give sample_rate" in source.problems[0].reason
  (first, *_) = examples(source_of(tmp_path / "pcm.tfrecord", sample_rate=RATE))
  assert len(first["audio"]) == pytest.approx(2 * 1_600, abs=4)


def test_numbers_of_an_example_are_texts_too(tmp_path):
  features = {"speaker": tf.train.Feature(int64_list=tf.train.Int64List(value=[7]))}
  with tf.io.TFRecordWriter(str(tmp_path / "m.TFRecord")) as writer:
    example = tf.train.Example.FromString(proto(0))
    example.features.MergeFrom(tf.train.Features(feature=features))
    writer.write(example.SerializeToString())
  (made,) = examples(source_of(tmp_path / "m.TFRecord"))
  assert made["voice"] == b"7"
  parts = make_splits(
    str(tmp_path / "m.TFRecord"), {"train": {"speaker": 7}}, split_by="", where={}
  )
  assert len(examples(RecordSource(parts, RecordSettings()))) == 1


def test_paths_in_files_of_records_start_at_the_file(data, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  table = pyarrow.table({"audio": ["folder/speaker/03.flac"], "text": ["three"]})
  pyarrow.parquet.write_table(table, data / "paths.parquet")
  assert len(examples(source_of(str(data / "paths.parquet")))) == 1
  (data / "paths.parquet").unlink()


# --- damage ----------------------------------------------------------------------------------


def damaged(data, tmp_path, kind, change):
  """The two files of a kind, the second changed; the bytes of that one."""
  paths = sorted(data.glob(SOURCES[kind]))
  for path in paths:
    (tmp_path / path.name).write_bytes(path.read_bytes())
  last = tmp_path / paths[-1].name
  last.write_bytes(change(last.read_bytes()))
  return tmp_path / SOURCES[kind]


def test_a_tfrecord_cut_short_keeps_the_records_before_the_cut(data, tmp_path):
  pattern = damaged(data, tmp_path, "tfrecord", lambda content: content[: len(content) // 2])
  source = source_of(str(pattern))
  kept = len(examples(source)) - COUNT // 2
  (problem,) = source.problems
  assert 1 <= kept < COUNT // 2 and problem.name.endswith("-00001-of-00002")
  assert f"is cut off after record {kept}" in problem.reason and problem.count >= 1


def test_a_changed_byte_costs_one_tfrecord(data, tmp_path):
  def change(content):
    size = int.from_bytes(content[:8], "little")
    # Within the first record's audio, then the length of the third.
    return content[: size // 2] + bytes([content[size // 2] ^ 1]) + content[size // 2 + 1 :]

  source = source_of(str(damaged(data, tmp_path, "tfrecord", change)))
  assert len(examples(source)) == COUNT - 1
  assert "checksum is wrong" in source.problems[0].reason


@pytest.mark.parametrize("kind", ["array_record", "parquet"])
def test_a_file_that_cannot_be_opened_counts_as_the_rows_lost(data, tmp_path, kind):
  pattern = damaged(data, tmp_path, kind, lambda content: content[: len(content) // 2])
  source = source_of(str(pattern))
  assert len(examples(source)) == COUNT // 2
  (problem,) = source.problems
  assert problem.count == COUNT // 2 and "cut off or damaged" in problem.reason


@pytest.mark.parametrize("kind", ["tfrecord", "array_record", "parquet"])
def test_flipped_bits_give_examples_or_problems(data, tmp_path, kind):
  content = sorted(data.glob(SOURCES[kind]))[-1].read_bytes()
  suffix = {"tfrecord": ".tfrecord", "array_record": ".array_record", "parquet": ".parquet"}[kind]
  for seed in range(25):
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    for place in rng.integers(0, len(content), 10):
      changed[place] ^= 1 << rng.integers(8)
    path = tmp_path / f"{seed}{suffix}"
    path.write_bytes(changed)
    source = source_of(path, share=1.0)
    made = examples(source)
    assert len(made) + len(source.problems) >= 1
    assert all("\n" not in problem.reason for problem in source.problems)


def test_text_of_parquet_that_is_not_utf8_is_named(tmp_path):
  raw = pyarrow.array([b"good", b"b\xffd"], pyarrow.binary())
  text = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
  audio = [{"bytes": flac(n), "path": None} for n in range(2)]
  pyarrow.parquet.write_table(pyarrow.table({"audio": audio, "text": text}), tmp_path / "a.parquet")
  source = source_of(tmp_path / "a.parquet")
  assert len(examples(source)) == 1
  assert "field 'text' is not UTF-8" in source.problems[0].reason


def test_a_folder_names_what_lacks_its_other_half(tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"{name}.flac").write_bytes(flac(1))
  (tmp_path / "a.txt").write_text("one")
  (tmp_path / "._a.flac").write_bytes(b"macOS")
  old = os.fsdecode(b"caf\xe9")  # Latin-1, as old archives have it
  (tmp_path / f"{old}.flac").write_bytes(flac(2))
  (tmp_path / f"{old}.txt").write_text("two")
  (tmp_path / "c.txt").write_text("three")
  source = source_of(tmp_path, share=1.0)
  assert [example["id"] for example in examples(source)] == [b"a", b"caf\\xe9"]
  assert len(source.fingerprint()) == 64
  reasons = {problem.name: problem.reason for problem in source.problems}
  assert "b.txt is missing" in reasons[str(tmp_path / "b.flac")]
  assert "no recording c.wav" in reasons[str(tmp_path / "c.txt")]


def test_tables_with_a_wrong_number_of_fields_or_quotes(tmp_path):
  (tmp_path / "0.flac").write_bytes(flac(0))
  (tmp_path / "m.tsv").write_text('audio\ttext\n0.flac\t"quoted\n0.flac\n')
  source = source_of(tmp_path / "m.tsv")
  assert [example["target"] for example in examples(source)] == [b'"quoted']
  assert "1 fields, the header names 2" in source.problems[0].reason
  (tmp_path / "m.csv").write_text('audio,text\n0.flac,"one, two"\n0.flac,"open\n')
  source = source_of(tmp_path / "m.csv")
  assert [example["target"] for example in examples(source)] == [b"one, two"]
  assert "not CSV" in source.problems[0].reason
  (tmp_path / "m.TSV").write_text("audio\ttext\ttext\n0.flac\tone\ttwo\n")
  with pytest.raises(UserError, match="names a column twice"):
    examples(source_of(tmp_path / "m.TSV"))
  (tmp_path / "m.txt").write_text("audio\ttext\n0.flac\tone\n")
  with pytest.raises(UserError, match="file of an unknown kind; expected .jsonl"):
    examples(source_of(tmp_path / "m.txt"))


@pytest.mark.parametrize(
  ("source", "says"),
  [
    ([], "expected files"),
    (["a.parquet", "b.tfrecord"], "mixes kinds"),
    (["a.jsonl", "b.jsonl"], "a list is of"),
    (["tfds:x"], "named by splits"),
  ],
)
def test_sources_that_make_no_table_are_refused(source, says):
  with pytest.raises(ValueError, match=says):
    open_table(source)


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ({"source": "m.jsonl", "splits": {"train": 0.9}}, "add up to 1"),
    ({"source": "m.jsonl", "splits": {"train": 0.9, "test": {"a": "b"}}}, "mixes shares"),
    ({"source": "m.jsonl", "splits": {"train": {"a": "b"}}, "split_by": "id"}, "split_by"),
    ({"source": "m.jsonl", "splits": {"train": "train"}}, "expected a share"),
    ({"source": {"train": "m.jsonl"}, "splits": {"train": 1.0}}, "takes neither"),
    ({"source": "tfds:x", "splits": {"train": 0.9, "test": 0.1}}, "one of TFDS's"),
    ({"source": "m.tfrecord", "splits": None, "split_by": "speaker"}, "read as a whole"),
    ({"source": "m.jsonl", "splits": {"train": float("nan")}}, "add up to 1"),
    ({"source": "m.jsonl", "splits": {"a/b": 1.0}}, "needs a name"),
    ({"source": {}, "splits": None}, "needs a name"),
    ({"source": "tfds:", "splits": None}, "names no data set"),
  ],
)
def test_splits_that_do_not_go_together_are_refused(arguments, says):
  with pytest.raises(ValueError, match=says):
    make_splits(**{"split_by": "", "where": {}, **arguments})


def test_missing_files_are_named(tmp_path):
  for name in ("m.jsonl", "m.parquet", "m.tfrecord*", "folder"):
    source = source_of(str(tmp_path / name))
    with pytest.raises(UserError, match=name.replace("*", r"\*")):
      source.list_shards("train")
