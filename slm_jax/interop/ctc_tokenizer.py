"""Text of a CTC head's classes, from whatever files an encoder's folder tells it by."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import TOKENIZER_NAME, open_tokenizer, read_json_object

FAST_NAME = "tokenizer.json"
VOCABULARY_NAME = "vocab.json"
SETTINGS_NAME = "tokenizer_config.json"
# Every file that may belong to a tokenizer; they go with the weights.
TOKENIZER_FILES = (
  TOKENIZER_NAME,
  FAST_NAME,
  VOCABULARY_NAME,
  SETTINGS_NAME,
  "special_tokens_map.json",
  "added_tokens.json",
)
_VOCABULARY_CLASSES = (None, "Wav2Vec2CTCTokenizer")
_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# What `clean_up_tokenization_spaces` of a published tokenizer stands for, in this order.
_CLEANED_UP = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'")]
_CLEANED_UP += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


@dataclasses.dataclass(frozen=True)
class CtcTokenizer:
  """Turns classes into text.

  Attributes:
    to_text: text of the ids of known classes.
    known: ids that stand for text: no padding, no unknown, no sentence's end.
    sentencepiece_model: the model file's content, None for other kinds.
  """

  to_text: Callable[[list[int]], str]
  known: frozenset[int]
  sentencepiece_model: bytes | None = None

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids that are collapsed already: repeats merged, blanks removed.

    Ids that stand for no text are passed over: a head may have more classes than its tokenizer.
    """
    return self.to_text([int(i) for i in ids if int(i) in self.known])

  def serialized_model_proto(self) -> bytes | None:
    """`sentencepiece_model`, by the name that a SentencePiece processor has for it."""
    return self.sentencepiece_model


def tokenizer_files(folder: Path | str) -> tuple[Path, ...]:
  """Files of a folder's tokenizer."""
  found = (Path(folder) / name for name in TOKENIZER_FILES)
  return tuple(file for file in found if file.is_file())


def open_ctc_tokenizer(folder: Path | str) -> CtcTokenizer | None:
  """The tokenizer of a folder: of spiece.model, else of tokenizer.json, else of vocab.json.

  Returns:
    None where the folder has none of them.

  Raises:
    UserError: a file is damaged, or vocab.json of a kind that is not supported.
  """
  folder = Path(folder)
  if (folder / TOKENIZER_NAME).is_file():
    return _from_sentencepiece(folder / TOKENIZER_NAME)
  file = folder / SETTINGS_NAME
  settings = read_json_object(file) if file.is_file() else {}
  if (folder / FAST_NAME).is_file():
    return _from_fast(folder / FAST_NAME, settings)
  if (folder / VOCABULARY_NAME).is_file():
    return _from_vocabulary(folder / VOCABULARY_NAME, settings)
  return None


def _from_sentencepiece(file: Path) -> CtcTokenizer:
  pieces = open_tokenizer(file)
  known = (
    i for i in range(pieces.vocab_size()) if not (pieces.is_control(i) or pieces.is_unknown(i))
  )
  return CtcTokenizer(pieces.decode, frozenset(known), pieces.serialized_model_proto())


def _from_fast(file: Path, settings: Mapping[str, Any]) -> CtcTokenizer:
  import tokenizers

  try:
    fast = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises this class itself
    raise UserError(f"{file} is not a tokenizer that this program reads: {error}") from error
  special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
  known = frozenset(fast.get_vocab(with_added_tokens=True).values()) - special
  # As transformers does: byte pairs carry their own spaces.
  clean = bool(settings.get("clean_up_tokenization_spaces")) and not isinstance(
    fast.model, tokenizers.models.BPE
  )
  return CtcTokenizer(lambda ids: _cleaned_up(fast.decode(ids), clean), known)


def _from_vocabulary(file: Path, settings: Mapping[str, Any]) -> CtcTokenizer:
  """Characters, words apart by a delimiter: the tokenizer of wav2vec 2.0 and its descendants."""
  kind = settings.get("tokenizer_class")
  if kind not in _VOCABULARY_CLASSES:
    raise UserError(
      f"{file.parent / SETTINGS_NAME}: tokenizer_class is {kind!r}, supported with {file.name} is "
      f"{_VOCABULARY_CLASSES[-1]!r}; remove {file.name} to use the encoder's frames alone"
    )
  vocabulary: dict[str, Any] = read_json_object(file)
  if (language := settings.get("target_lang")) is not None:
    vocabulary = vocabulary.get(language, {})
  if not vocabulary or not all(type(i) is int for i in vocabulary.values()):
    raise UserError(
      f"{file}: expected characters and their ids, with target_lang {language!r} of {SETTINGS_NAME}"
    )
  text = {i: token for token, i in vocabulary.items()}
  for name, added in settings.get("added_tokens_decoder", {}).items():
    if not added.get("special"):
      text.setdefault(int(name), added["content"])
  delimiter = _content(settings.get("word_delimiter_token", "|"))
  special = {_content(settings.get(name, default)) for name, default in _SPECIAL.items()}
  special |= {_content(token) for token in settings.get("additional_special_tokens") or ()}
  known = {i for i, token in text.items() if token == delimiter or token not in special}
  space = settings.get("replace_word_delimiter_char", " ")
  lower, clean = (
    bool(settings.get(name)) for name in ("do_lower_case", "clean_up_tokenization_spaces")
  )

  def to_text(ids: list[int]) -> str:
    line = "".join(space if text[i] == delimiter else text[i] for i in ids).strip()
    return _cleaned_up(line.lower() if lower else line, clean)

  return CtcTokenizer(to_text, frozenset(known))


def _content(token: Any) -> Any:
  """A token's text, which some folders wrap in an object."""
  return token.get("content") if isinstance(token, Mapping) else token


def _cleaned_up(text: str, wanted: bool) -> str:
  for before, after in _CLEANED_UP if wanted else ():
    text = text.replace(before, after)
  return text
