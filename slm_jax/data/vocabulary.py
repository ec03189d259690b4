"""The vocabulary that tasks tokenise with: that of the frozen LM."""

import contextlib
import functools
import os
from pathlib import Path

import seqio
from google.protobuf.message import DecodeError

import slm_jax
from slm_jax.errors import UserError

MINI_VOCABULARY = Path(slm_jax.__file__).parent / "assets/mini/spiece.model"
# SentencePiece model, or folder of an LM that has one, of tasks that name none.
ENVIRONMENT = "SLM_JAX_VOCABULARY"
_FILES = ("spiece.model", "sentencepiece.model", "tokenizer.model")


def vocabulary(path: str | Path | None = None) -> seqio.SentencePieceVocabulary:
  """The vocabulary of a SentencePiece model or of a folder that holds one.

  Without a path it is `$SLM_JAX_VOCABULARY`'s, or else the miniature's. One object for one path, so
  that tasks that share a vocabulary can be mixed.

  Raises UserError if there is no such model.
  """
  return _load(Path(path or os.environ.get(ENVIRONMENT) or MINI_VOCABULARY).expanduser().resolve())


@functools.cache
def _load(path: Path) -> seqio.SentencePieceVocabulary:
  candidates = [path / name for name in _FILES] if path.is_dir() else [path]
  for candidate in candidates:
    if candidate.is_file():
      found = seqio.SentencePieceVocabulary(str(candidate))
      with contextlib.suppress(DecodeError, RuntimeError):
        _ = found.tokenizer  # reads the model
        return found
  raise UserError(
    f"vocabulary {path} is no SentencePiece model, nor a folder with one of {', '.join(_FILES)}; "
    f"name the tokenizer of the frozen LM, or set ${ENVIRONMENT}"
  )
