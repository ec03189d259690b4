"""tokenizer.json of T5's tokenizers, as Transformers writes it, against the SentencePiece model it was made from."""

import json
import shutil

import pytest
import transformers

from slm_jax.cli.main import main
from slm_jax.data.vocabulary import MINI_VOCABULARY
from slm_jax.errors import UserError
from slm_jax.interop import load_language_model
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.safetensors_folder import open_tokenizer
from tests.t5x_folders import CONFIG, random_params

LINES = (
  "Anna buys two red apples.",
  "  two   spaces ",
  "Größe: ça ﬁne １２",
  "日本 語x",
  "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What Transformers saves of the mini world's tokenizer."""
  folder = tmp_path_factory.mktemp("tokenizer")
  shutil.copy(MINI_VOCABULARY, folder / "spiece.model")
  fast = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=3)
  (folder / "spiece.model").unlink()
  fast.save_pretrained(folder)
  return folder


def test_ids_are_those_of_sentencepiece_and_of_transformers(folder):
  found = open_tokenizer(folder / "tokenizer.json")
  expected, fast = open_tokenizer(MINI_VOCABULARY), transformers.T5Tokenizer.from_pretrained(folder)
  assert (found.pad_id(), found.eos_id(), found.unk_id()) == (0, 1, 2)
  assert found.vocab_size() == expected.vocab_size() + 3
  for line in LINES:
    ids = found.encode(line)
    assert ids == expected.encode(line), line
    assert ids == fast.encode(line, add_special_tokens=False), line
    assert found.decode(ids) == expected.decode(ids)
  sentinel = found.piece_to_id("<extra_id_0>")
  assert sentinel == fast.convert_tokens_to_ids("<extra_id_0>") >= expected.vocab_size()
  assert sentinel in found.encode("a <extra_id_0> b")


def test_an_import_makes_the_spiece_model(folder, tmp_path, capsys):
  save_language_model(tmp_path / "lm", CONFIG, random_params(CONFIG))
  shutil.copy(folder / "tokenizer.json", tmp_path / "lm")
  direct = load_language_model(tmp_path / "lm").tokenizer
  assert main(["import", f"--source={tmp_path / 'lm'}", f"--output={tmp_path / 'out'}"]) == 0
  assert "has no" not in capsys.readouterr().err
  ids = open_tokenizer(tmp_path / "out" / "spiece.model").encode(LINES[0])
  assert ids == direct.encode(LINES[0]) and len(ids) > 3


def lowered(record):
  record["normalizer"] = {"type": "Lowercase"}


def byte_level(record):
  record["pre_tokenizer"] = {"type": "ByteLevel"}


def cut(record):
  record["model"]["vocab"][5] = ["x"]


def far(record):
  record["added_tokens"].append({"content": "<far>", "id": 10_000})


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lowered, "normalizer 'Lowercase' is not SentencePiece's"),
    (byte_level, "pre-tokenizer 'ByteLevel' is not"),
    (cut, "not enough values to unpack"),
    (far, "'<far>' has 10000"),
    (lambda record: record.update(model={"type": "BPE"}), "model is 'BPE', expected 'Unigram'"),
    (lambda record: record.pop("model"), "KeyError"),
  ],
)
def test_another_kind_is_named(folder, tmp_path, damage, message):
  record = json.loads((folder / "tokenizer.json").read_text())
  damage(record)
  (tmp_path / "tokenizer.json").write_text(json.dumps(record))
  with pytest.raises(UserError, match=message):
    open_tokenizer(tmp_path / "tokenizer.json")
