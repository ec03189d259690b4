"""CTC text of every kind of tokenizer, against transformers' own decoding."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
import transformers

from slm_jax.cli.main import main
from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder
from slm_jax.interop.ctc_tokenizer import open_ctc_tokenizer, tokenizer_files
from slm_jax.interop.speech_encoder_folder import abstract_params, save_speech_encoder
from slm_jax.models.conformer import ConformerConfig

RNG = np.random.default_rng(0)
CHARACTERS = {"|": 4, **{c: i for i, c in enumerate("ENT'S.,ÄX", start=5)}}


def save_vocabulary(folder, vocabulary=None, **settings):
  default = {"[PAD]": 0, "<s>": 1, "</s>": 2, "[UNK]": 3, **CHARACTERS}
  vocabulary = default if vocabulary is None else vocabulary
  file = folder / "source.json"
  file.write_text(json.dumps(vocabulary))
  settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", **settings}
  theirs = transformers.Wav2Vec2CTCTokenizer(str(file), **settings)
  theirs.save_pretrained(folder)
  file.unlink()
  return theirs


def check_same_text(ours, theirs, size, rows=200):
  """`ids` are collapsed: no class follows itself, and the blank, class 0, is gone."""
  texts = set()
  for _ in range(rows):
    ids = RNG.integers(1, size, RNG.integers(0, 12))
    expected = theirs.decode(ids.tolist(), skip_special_tokens=True, group_tokens=False)
    assert ours.decode(ids) == expected, ids
    texts.add(expected)
  assert len(texts) > rows // 2


@pytest.mark.parametrize(
  "settings",
  [
    {},
    dict(do_lower_case=True),
    dict(clean_up_tokenization_spaces=True),
    dict(word_delimiter_token="X", replace_word_delimiter_char="_"),
    dict(target_lang="eng"),
  ],
  ids=str,
)
def test_characters(tmp_path, settings):
  vocabulary = None
  if "target_lang" in settings:
    base = {"[PAD]": 0, "<s>": 1, "</s>": 2, "[UNK]": 3}
    vocabulary = {"deu": {**base, "U": 4}, "eng": {**base, **CHARACTERS}}
  theirs = save_vocabulary(tmp_path, vocabulary, **settings)
  ours = open_ctc_tokenizer(tmp_path)
  check_same_text(ours, theirs, 14)
  if not settings:
    ids = [CHARACTERS[c] for c in "|TEN|NETS|"]
    assert ours.decode(ids) == "TEN NETS" and ours.decode([]) == ""
    # Classes beyond the vocabulary are no text.
    assert ours.decode([*ids, 14, 999]) == "TEN NETS"


def save_fast(folder, model, decoder, **settings):
  fast = tokenizers.Tokenizer(model)
  fast.decoder = decoder
  fast.add_special_tokens(["<pad>", "<unk>", "</s>"])
  special = dict(pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
  wrapped = transformers.ParakeetTokenizer(tokenizer_object=fast, **special, **settings)
  wrapped.save_pretrained(folder)
  return wrapped


WORDS = ["<pad>", "<unk>", "</s>", "▁the", "▁cat", "s", "▁", "'s", "▁n't", ".", "▁.", "▁ü"]


@pytest.mark.parametrize("clean", [False, True])
def test_pieces_in_tokenizer_json(tmp_path, clean):
  model = tokenizers.models.Unigram([(word, -1.0) for word in WORDS], unk_id=1)
  theirs = save_fast(
    tmp_path, model, tokenizers.decoders.Metaspace(), clean_up_tokenization_spaces=clean
  )
  ours = open_ctc_tokenizer(tmp_path)
  check_same_text(ours, theirs, len(WORDS))
  assert ours.decode([3, 4, 5, 2, 99]) == "the cats"


def test_byte_pairs_in_tokenizer_json(tmp_path):
  vocabulary = {word: i for i, word in enumerate(WORDS)}
  model = tokenizers.models.BPE(vocabulary, [], unk_token="<unk>")
  theirs = save_fast(
    tmp_path, model, tokenizers.decoders.Metaspace(), clean_up_tokenization_spaces=True
  )
  check_same_text(open_ctc_tokenizer(tmp_path), theirs, len(WORDS))


def test_sentencepiece(tmp_path, tiny_tokenizer):
  shutil.copy(tiny_tokenizer, tmp_path / "spiece.model")
  theirs = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
  ours = open_ctc_tokenizer(tmp_path)
  for _ in range(100):
    ids = RNG.integers(0, 64, RNG.integers(0, 12)).tolist()
    # A lone first space is kept by transformers and dropped by SentencePiece itself.
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True).lstrip(), ids
  assert ours.decode([64, 1000]) == ""
  assert ours.serialized_model_proto() == tiny_tokenizer.read_bytes()


def test_which_file_is_read(tmp_path, tiny_tokenizer):
  assert open_ctc_tokenizer(tmp_path) is None and tokenizer_files(tmp_path) == ()
  save_vocabulary(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer"):
    open_ctc_tokenizer(tmp_path)
  shutil.copy(tiny_tokenizer, tmp_path / "spiece.model")
  assert open_ctc_tokenizer(tmp_path).serialized_model_proto()


@pytest.mark.parametrize(
  ("name", "content", "says"),
  [
    ("vocab.json", "[]", "vocab.json holds a JSON list"),
    ("vocab.json", "{}", "vocab.json: expected characters and their ids"),
    ("vocab.json", '{"eng": {"a": 0}}', "vocab.json: expected .* target_lang None"),
    ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
    ("tokenizer_config.json", '{"tokenizer_class": "X"}', "tokenizer_class is 'X'.* remove"),
    ("tokenizer_config.json", '{"target_lang": "fra"}', "target_lang 'fra'"),
    ("tokenizer.json", "x", "tokenizer.json is not a tokenizer"),
    ("spiece.model", "x", "spiece.model is not a SentencePiece model"),
  ],
)
def test_files_that_do_not_do(tmp_path, name, content, says):
  save_vocabulary(tmp_path)
  (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=says) as raised:
    open_ctc_tokenizer(tmp_path)
  assert "\n" not in str(raised.value)


def save_encoder(folder, vocab_size):
  config = ConformerConfig(
    num_layers=1, model_dim=8, num_heads=2, num_mel_bins=16, subsampling_channels=(3, 4),
    vocab_size=vocab_size,
  )  # fmt: skip
  params = {}
  import jax

  params = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype("f"), abstract_params(config))
  save_speech_encoder(folder, config, params)


def test_an_import_takes_all_files_along(tmp_path, capsys):
  source, output = tmp_path / "source", tmp_path / "output"
  save_encoder(source, vocab_size=14)
  save_vocabulary(source)
  assert main(["import", f"--source={source}", f"--output={output}"]) == 0
  for file in tokenizer_files(source):
    assert (output / file.name).read_bytes() == file.read_bytes()
  assert len(tokenizer_files(output)) >= 2
  assert load_speech_encoder(output).tokenizer.decode([6, 5, 7]) == "NET"
  assert "text does not" not in capsys.readouterr().err


def test_an_encoder_without_text_says_so_and_one_without_a_head_needs_none(tmp_path, capsys):
  save_encoder(tmp_path / "a", vocab_size=14)
  assert main(["import", f"--source={tmp_path / 'a'}", f"--output={tmp_path / 'b'}"]) == 0
  assert "vocab.json: ids work, text does not" in capsys.readouterr().err
  save_encoder(tmp_path / "c", vocab_size=0)
  (tmp_path / "c" / "tokenizer.json").write_text("of something else")
  assert main(["import", f"--source={tmp_path / 'c'}", f"--output={tmp_path / 'd'}"]) == 0
  assert "text does not" not in capsys.readouterr().err
  assert load_speech_encoder(tmp_path / "d").tokenizer is None
