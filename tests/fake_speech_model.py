"""A model with perfect hearing, to test batching: words are runs of a constant sample value."""

import dataclasses
from types import SimpleNamespace

import numpy as np

SAMPLES_PER_WORD = 100
PAUSE = 100


def speak(words: list[int]) -> np.ndarray:
  """Words 1…99 → int16 samples, a pause after each."""
  parts = [np.r_[np.full(SAMPLES_PER_WORD, word), np.zeros(PAUSE)] for word in words]
  return np.concatenate(parts).astype(np.int16)


def spell(words: list[int]) -> str:
  """What `speak` says, as text."""
  return " ".join(f"w{word}" for word in words)


class CharacterTokenizer:
  """sentencepiece's interface over characters; ids 0, 1, 2 are special."""

  def encode(self, text: str) -> list[int]:
    return [ord(char) + 3 for char in text]

  def decode(self, ids: list[int]) -> str:
    assert all(type(i) is int for i in ids)
    return "".join(chr(i - 3) for i in ids)

  def vocab_size(self) -> int:
    return 0x2FFF


@dataclasses.dataclass
class FakeSpeechModel:
  """Repeats what it hears, or, told "translate", repeats it in capitals.

  With `listens=False` it answers "w1" to any audio. Every call's shapes are kept in `shapes`.
  """

  max_samples: int = 1_000
  listens: bool = True
  ctc_drops_first_word: bool = True
  has_ctc: bool = True
  shapes: set = dataclasses.field(default_factory=set)
  calls: int = 0
  tokenizer: CharacterTokenizer = dataclasses.field(default_factory=CharacterTokenizer)

  def _hear(self, audio: np.ndarray, length: int) -> list[str]:
    if not self.listens:
      return ["w1"]
    heard = audio[:length]
    starts = np.flatnonzero((heard != 0) & (np.r_[0, heard[:-1]] != heard))
    return [f"w{heard[i]}" for i in starts]

  def _answer(self, text: str, instruction: str) -> list[int]:
    answer = text.upper() if "translate" in instruction else text
    return [*self.tokenizer.encode(answer), 1]

  def _result(self, rows: list[list[int]], length: int) -> SimpleNamespace:
    ids = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
      row = row[:length]
      ids[i, : len(row)] = row
      ids[i, len(row) + 1 :] = 7 if 1 in row else 0  # after EOS anything may stand
    return SimpleNamespace(ids=ids, scores=np.asarray([-len(row) for row in rows], np.float32))

  def generate(self, audio, lengths, prompt_tokens, *, max_new_tokens, num_beams, length_penalty):
    assert audio.dtype == np.int16 and lengths.dtype == prompt_tokens.dtype == np.int32
    assert (lengths > 0).all()
    self.calls += 1
    self.shapes.add(("speech", audio.shape, prompt_tokens.shape, max_new_tokens))
    rows = []
    for samples, length, prompt in zip(audio, lengths, prompt_tokens, strict=True):
      prompt = prompt[prompt != 0].tolist()
      assert prompt[-1] == 1
      instruction = self.tokenizer.decode(prompt[:-1])
      rows.append(self._answer(" ".join(self._hear(samples, length)), instruction))
    return self._result(rows, max_new_tokens)

  def ctc_transcribe(self, audio, lengths) -> list[str]:
    self.shapes.add(("ctc", audio.shape))
    first = 1 if self.ctc_drops_first_word else 0
    return [" ".join(self._hear(a, n)[first:]) for a, n in zip(audio, lengths, strict=True)]

  @property
  def language_model(self):
    return SimpleNamespace(generate=self._read)

  def _read(self, *, tokens, mask, max_new_tokens, num_beams, length_penalty):
    self.shapes.add(("text", tokens.shape))
    np.testing.assert_array_equal(mask, tokens != 0)
    rows = []
    for row in tokens:
      text = self.tokenizer.decode(row[row != 0].tolist()[:-1])
      transcript, instruction = text.split(":", 1)  # instructions in tests begin with a colon
      rows.append(self._answer(transcript, instruction))
    return self._result(rows, max_new_tokens)
