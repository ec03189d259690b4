"""What a language model answers to a transcript and an instruction, at one declared shape.

B batch, S source length, T new tokens at most.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.evaluation.generation import EOS_ID, PAD_ID, decode_ids, pad_rows, prompt_ids
from slm_jax.models.generation_config import GenerationConfig


class Answer(NamedTuple):
  """The LM's text without white space at its ends; `reason` says why it is not one to train on, or is ""."""

  text: str
  reason: str = ""


class TextAnswers:
  """Asks a frozen LM about texts as if each had been spoken; every call of the LM has the shape [B, S]."""

  def __init__(
    self,
    language_model: Any,
    decoding: GenerationConfig,
    *,
    batch_size: int,
    source_length: int,
    speech_first: bool = True,
  ):
    """`language_model` has `tokenizer` and `generate`; `speech_first` as of `SLMConfig`.

    Raises ValueError for a size below 1.
    """
    if min(batch_size, source_length) < 1:
      raise ValueError(f"{batch_size=} and {source_length=} must be at least 1")
    self._model = language_model
    self._decoding = decoding
    self.batch_size = batch_size
    self._length = source_length
    self._speech_first = speech_first

  def source_ids(self, transcript: str, instruction: str) -> list[int]:
    """The LM's input: as in `SLM.join_inputs`, with the transcript's pieces in the speech's place."""
    tokenizer = self._model.tokenizer
    spoken, asked = list(tokenizer.encode(transcript)), prompt_ids(tokenizer, instruction)
    return [*spoken, *asked] if self._speech_first else [*asked, *spoken]

  def __call__(self, pairs: Sequence[tuple[str, str]], seed: int = 0) -> list[Answer]:
    """The answer to each (transcript, instruction), in order.

    Sampled tokens are a function of `seed`, from which batch i takes seed + i, and of the pairs.
    """
    sources = [self.source_ids(*pair) for pair in pairs]
    answers = [
      Answer("", f"its transcript and instruction have {len(source)} tokens, over {self._length}")
      for source in sources
    ]
    fitting = [i for i, source in enumerate(sources) if len(source) <= self._length]
    for number, start in enumerate(range(0, len(fitting), self.batch_size)):
      chosen = fitting[start : start + self.batch_size]
      found = self._batch([sources[i] for i in chosen], seed + number)
      for i, answer in zip(chosen, found, strict=True):
        answers[i] = answer
    return answers

  def _batch(self, sources: Sequence[Sequence[int]], seed: int) -> list[Answer]:
    # Missing rows repeat the first: an empty one might decode to the limit.
    rows = [*sources, *[sources[0]] * (self.batch_size - len(sources))]
    tokens = pad_rows(rows, self._length)
    found = self._model.generate(
      tokens=tokens, mask=tokens != PAD_ID, **dataclasses.asdict(self._decoding) | {"seed": seed}
    )
    return [self._answer(ids) for ids in np.asarray(found.ids)[: len(sources)]]

  def _answer(self, ids: np.ndarray) -> Answer:
    text = decode_ids(self._model.tokenizer, ids).strip()
    if EOS_ID not in ids:
      return Answer(text, f"answer cut at {len(ids)} tokens")
    if not text:
      return Answer(text, "empty answer")
    if "\ufffd" in text:
      return Answer(text, "answer with U+FFFD, which is no text")
    return Answer(text)
