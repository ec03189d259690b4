"""Recipes: what fits together, and what does not."""

import dataclasses
import shutil

import numpy as np
import pytest
import sentencepiece

from slm_jax.errors import UserError
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.training.recipes import AdapterRecipe

ADAPTER = AdapterConfig(
  num_layers=1,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  length_reduction=LengthReductionConfig(kind="ctc_blank"),
  ctc_embeddings=True,
)


def other_tokenizer(folder, tiny_tokenizer):
  words = np.random.default_rng(7).permutation(list("abdeiklmnorstu" * 40))
  (folder / "text.txt").write_text("\n".join("".join(words[i : i + 7]) for i in range(0, 560, 7)))
  size = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer)).vocab_size()
  sentencepiece.SentencePieceTrainer.Train(
    input=str(folder / "text.txt"),
    model_prefix=str(folder / "spiece"),
    vocab_size=size,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return folder / "spiece.model"


def test_ctc_embeddings_build_where_both_bases_share_their_pieces(tiny_bases):
  assert AdapterRecipe(**tiny_bases, adapter=ADAPTER).build().objective is not None


def test_ctc_embeddings_over_other_pieces_are_refused(tiny_bases, tiny_tokenizer, tmp_path):
  folder = tmp_path / "speech_encoder"
  shutil.copytree(tiny_bases["speech_encoder"], folder)
  shutil.copy(other_tokenizer(tmp_path, tiny_tokenizer), folder / "spiece.model")
  bases = {**tiny_bases, "speech_encoder": str(folder)}
  with pytest.raises(UserError, match="ctc_embeddings=True"):
    AdapterRecipe(**bases, adapter=ADAPTER).build()
  plain = dataclasses.replace(ADAPTER, ctc_embeddings=False)
  AdapterRecipe(**bases, adapter=plain).build()
