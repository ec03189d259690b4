"""Pieces spelled out as characters for the middle layer's CTC head."""

import jax.numpy as jnp
import numpy as np
import sentencepiece

from slm_jax.training.character_targets import character_labels, character_table


def test_labels_spell_the_text(tiny_tokenizer):
  tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer))
  table, size = character_table(tokenizer)
  texts = ["batun silo", "a"]
  ids = [tokenizer.encode(text) for text in texts]
  labels = np.zeros((2, 12), np.int32)
  for row, pieces in enumerate(ids):
    labels[row, : len(pieces)] = pieces
  mask = labels != 0
  spelled, real = character_labels(table, jnp.asarray(labels), jnp.asarray(mask), 20)
  assert table.max() == size - 1
  counts = np.asarray(real.sum(-1))
  np.testing.assert_array_equal(counts, [len(text.replace(" ", "")) for text in texts])
  first, second = np.asarray(spelled)
  assert first[1] == second[0]  # the letter a
  assert first[0] != first[1] and np.all(first[counts[0] :] == 0)


def test_padding_is_not_spelled(tiny_tokenizer):
  tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer))
  table, _ = character_table(tokenizer)
  labels = jnp.asarray([tokenizer.encode("batun")])
  _, real = character_labels(table, labels, jnp.zeros_like(labels, bool), 8)
  assert not real.any()
