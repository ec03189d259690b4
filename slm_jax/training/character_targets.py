"""Characters as targets of a CTC head in the middle of a speech encoder.

Word pieces are many and each is rare: a CTC head over them alone spends its first thousands of steps guessing
frequencies. Characters are few, so the lower layers find the alignment early and the upper ones group it into pieces.
"""

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.models.ctc import pack_left

# Class of the blank, as `ConformerConfig` has it.
BLANK_ID = 0


def character_table(tokenizer) -> tuple[np.ndarray, int]:
  """The letters of every piece, lower-cased.

  Args:
    tokenizer: a SentencePiece processor of V pieces.

  Returns:
    (int32 [V, longest piece] of character ids, filled up with the blank's 0; number of classes, the blank included).
  """
  pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size())]
  special = [tokenizer.is_control(i) or tokenizer.is_unknown(i) for i in range(len(pieces))]
  letters = [
    [] if skip else [c for c in piece.lower() if c.isalpha()]
    for piece, skip in zip(pieces, special, strict=True)
  ]
  alphabet = sorted({c for word in letters for c in word})
  table = np.full((len(pieces), max(map(len, letters))), BLANK_ID, np.int32)
  for row, word in enumerate(letters):
    table[row, : len(word)] = [alphabet.index(c) + 1 for c in word]
  return table, len(alphabet) + 1


def character_labels(
  table: np.ndarray, labels: jax.Array, mask: jax.Array, max_characters: int
) -> tuple[jax.Array, jax.Array]:
  """Spells labels int32 [B, L] with mask bool [B, L] out: (int32 [B, max_characters], its mask, True = real)."""
  spelled = jnp.asarray(table)[labels]  # [B, L, longest piece]
  keep = (spelled != BLANK_ID) & mask[..., None]
  rows = labels.shape[0]
  return pack_left(spelled.reshape(rows, -1), keep.reshape(rows, -1), max_characters)
