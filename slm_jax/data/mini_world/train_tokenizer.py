"""Trains the mini world's SentencePiece model: `python -m slm_jax.data.mini_world.train_tokenizer`.

The corpus is text of the train split only: sentences, follow-ups, replies, questions, answers,
instructions and names. The result is a function of this package and the installed sentencepiece; a
file with its SHA-256 is written beside it.

The model is a unigram model, but its pieces are found by merging (BPE), then pruned and weighted by
hard EM: sentencepiece's own unigram trainer ends up spelling "in" and every name letter by letter
(median 19 pieces a sentence instead of 12). Names are cut into syllables before merging, so an
unseen name costs about as many pieces as it has syllables.
"""

import argparse
import hashlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

import slm_jax
from slm_jax.data.mini_world.instructions import WORDINGS, wordings
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.names import syllables
from slm_jax.data.mini_world.world import sample_sentence

model_pb2: Any = sentencepiece_model_pb2  # its classes exist only at run time

MODEL_PATH = Path(slm_jax.__file__).parent / "assets/mini/spiece.model"
VOCAB_SIZE = 2048
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
NUM_SENTENCES = 40_000
SEED = 20_231_000
CUT = "|"  # stands in no text of the mini world
MERGED_PER_KEPT = 1.37  # how many merged pieces compete for one place
EM_ROUNDS = 2


def _instructions() -> list[str]:
  targets = {task: LANGUAGES if task == "translate" else (None,) for task in WORDINGS}
  return [text for task in WORDINGS for to in targets[task] for text in wordings(task, "train", to)]


def corpus(num_sentences: int) -> Iterator[str]:
  """Lines of the train split, the syllables of every name set apart by `CUT`."""
  instructions = _instructions()
  for index in range(num_sentences):
    sentence = sample_sentence(SEED, index, "train")
    lines = [sentence.text(), ", ".join(sentence.names)]
    if index % 4 == 0:
      lines += [sentence.continuation(), sentence.reply()]
      lines += itertools.chain.from_iterable(sentence.questions())
    text = "\n".join(filter(None, lines))
    for name in sentence.names:
      text = text.replace(name, CUT.join(syllables(name)))
    yield from text.split("\n")
    if index % 200 == 0:
      yield from instructions


def _merge(lines: list[str], vocab_size: int) -> Any:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    model_type="bpe",
    vocab_size=vocab_size,
    character_coverage=1.0,
    normalization_rule_name="identity",
    pretokenization_delimiter=CUT,
    pad_id=PAD_ID,
    eos_id=EOS_ID,
    unk_id=UNK_ID,
    bos_id=-1,
    shuffle_input_sentence=False,
    num_threads=1,
    minloglevel=1,
  )
  return model_pb2.ModelProto.FromString(model.getvalue())


def _count(model: Any, words: Counter[str]) -> Counter[int]:
  """How often the model's best segmentation of the corpus uses each piece."""
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
  counts: Counter[int] = Counter()
  for word, frequency in words.items():
    for piece in processor.encode(word):
      counts[piece] += frequency
  return counts


def _reweighted(model: Any, counts: Counter[int]) -> Any:
  """The same pieces as a unigram model whose scores are log relative frequencies."""
  result = model_pb2.ModelProto.FromString(model.SerializeToString())
  result.trainer_spec.model_type = model_pb2.TrainerSpec.UNIGRAM
  total = sum(counts.values())
  for index, piece in enumerate(result.pieces):
    if piece.type == model_pb2.ModelProto.SentencePiece.NORMAL:
      piece.score = math.log((counts[index] + 0.5) / total)
  return result


def _pruned(model: Any, vocab_size: int) -> Any:
  """Drops the lowest-scored pieces of two characters and more."""
  pieces = list(model.pieces)
  normal = model_pb2.ModelProto.SentencePiece.NORMAL
  droppable = [i for i, p in enumerate(pieces) if p.type == normal and len(p.piece) > 1]
  droppable.sort(key=lambda i: (pieces[i].score, -i))
  dropped = set(droppable[: len(pieces) - vocab_size])
  result = model_pb2.ModelProto.FromString(model.SerializeToString())
  del result.pieces[:]
  result.pieces.extend(piece for i, piece in enumerate(pieces) if i not in dropped)
  return result


def train_tokenizer(num_sentences: int = NUM_SENTENCES, vocab_size: int = VOCAB_SIZE) -> bytes:
  """The bytes of a unigram model without text normalisation: decode(encode(text)) == text."""
  lines = list(corpus(num_sentences))
  words = Counter(word for line in lines for word in line.replace(CUT, "").split(" "))
  model = _merge(lines, int(vocab_size * MERGED_PER_KEPT))
  for _ in range(EM_ROUNDS):
    model = _reweighted(model, _count(model, words))
  model = _pruned(model, vocab_size)
  for _ in range(EM_ROUNDS):
    model = _reweighted(model, _count(model, words))
  model.trainer_spec.vocab_size = vocab_size
  model.trainer_spec.pretokenization_delimiter = ""
  return model.SerializeToString(deterministic=True)


def load_tokenizer(path: Path = MODEL_PATH) -> sentencepiece.SentencePieceProcessor:
  """The shipped model."""
  return sentencepiece.SentencePieceProcessor(model_file=str(path))


def main() -> None:
  """Writes the model and `<model>.sha256`."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", type=Path, default=MODEL_PATH, help="default: the shipped model")
  path = parser.parse_args().output
  model = train_tokenizer()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(model)
  digest = hashlib.sha256(model).hexdigest()
  path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
  print(f"{path}: {len(model)} bytes, SHA-256 {digest}")


if __name__ == "__main__":
  main()
