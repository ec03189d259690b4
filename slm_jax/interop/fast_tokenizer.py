"""tokenizer.json of a unigram model, as the SentencePiece model that it was made from.

Transformers 5 saves T5's tokenizers as tokenizer.json alone. It has all that SentencePiece needs: pieces
with their scores, and the compiled map of the normaliser.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm_jax.errors import UserError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"
# Steps of T5's fast tokenizers that do what SentencePiece does with spaces by itself.
_SPACES = ("Strip", "Replace", "WhitespaceSplit")
_CONTROL = ("<pad>", "</s>", "<s>")


def is_unigram(record: Mapping[str, Any]) -> bool:
  """Whether the content of a tokenizer.json is such a model; others, as of byte pairs, are none of ours."""
  model = record.get("model")
  return isinstance(model, Mapping) and model.get("type", "Unigram") == "Unigram" and bool(model)


def sentencepiece_model(record: Mapping[str, Any], file: Path) -> bytes:
  """The serialised model of a tokenizer.json.

  Args:
    record: content of the file.
    file: for messages.

  Raises:
    UserError: it is no unigram model, or it normalises text as SentencePiece cannot.
  """
  try:
    return _model(record)
  except (KeyError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
    raise UserError(f"{file} is not a tokenizer that this program reads: {error!r}") from error
  except ValueError as error:
    raise UserError(
      f"{file}: {error}; bring the SentencePiece model that it was made from"
    ) from error


def _model(record: Mapping[str, Any]) -> bytes:
  from sentencepiece import sentencepiece_model_pb2

  proto: Any = sentencepiece_model_pb2
  model = record["model"]
  if (kind := model.get("type", "Unigram")) != "Unigram":
    raise ValueError(f"its model is {kind!r}, expected 'Unigram'")
  found = proto.ModelProto()
  spec = found.trainer_spec
  spec.model_type, spec.byte_fallback = spec.UNIGRAM, bool(model.get("byte_fallback"))
  found.normalizer_spec.name = "precompiled"
  found.normalizer_spec.precompiled_charsmap = _charsmap(record.get("normalizer"))
  found.normalizer_spec.add_dummy_prefix = _prefix(record.get("pre_tokenizer"))
  types = proto.ModelProto.SentencePiece
  added = {token["content"]: token["id"] for token in record.get("added_tokens") or ()}
  pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
  for content, number in sorted(added.items(), key=lambda item: item[1]):
    if number > len(pieces):
      raise ValueError(f"nothing has the id {len(pieces)}, but {content!r} has {number}")
    if number == len(pieces):
      pieces.append((content, 0.0))
    elif pieces[number][0] != content:
      raise ValueError(f"both {pieces[number][0]!r} and {content!r} have the id {number}")
  for number, (piece, score) in enumerate(pieces):
    kind = types.NORMAL
    if number == model["unk_id"]:
      kind, spec.unk_id, spec.unk_piece = types.UNKNOWN, number, piece
    elif piece in _CONTROL:
      kind = types.CONTROL
    elif spec.byte_fallback and _BYTE.fullmatch(piece):
      kind = types.BYTE
    elif piece in added:
      kind = types.USER_DEFINED
    found.pieces.add(piece=piece, score=score, type=kind)
  spec.vocab_size = len(pieces)
  numbers = {piece: number for number, (piece, _) in enumerate(pieces)}
  spec.pad_id, spec.eos_id, spec.bos_id = (numbers.get(piece, -1) for piece in _CONTROL)
  return found.SerializeToString()


def _steps(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
  """A step, or those of a sequence."""
  if step is None:
    return
  if step["type"] != "Sequence":
    yield step
    return
  for one in step[inner]:
    yield from _steps(one, inner)


def _charsmap(normalizer: Mapping[str, Any] | None) -> bytes:
  found = b""
  for step in _steps(normalizer, "normalizers"):
    if step["type"] == "Precompiled":
      found = base64.b64decode(step["precompiled_charsmap"], validate=True)
    elif step["type"] not in _SPACES or step.get("content", _SPACE) not in (" ", _SPACE):
      raise ValueError(f"its normalizer {step['type']!r} is not SentencePiece's")
  return found


def _prefix(pre_tokenizer: Mapping[str, Any] | None) -> bool:
  """Whether a space is put ahead of the text."""
  found = None
  for step in _steps(pre_tokenizer, "pretokenizers"):
    if step["type"] == "Metaspace" and step.get("replacement") == _SPACE:
      found = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
    elif step["type"] not in _SPACES:
      raise ValueError(f"its pre-tokenizer {step['type']!r} is not SentencePiece's")
  if found is None:
    raise ValueError(f"its pre-tokenizer does not turn spaces into {_SPACE!r}")
  return found
