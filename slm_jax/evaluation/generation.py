"""Texts out of a model at declared static shapes: what evaluation and inference share.

Every call of the model sees the same (batch, samples, prompt) shape, so it is compiled once. Audio
longer than the model's limit is cut at pauses and the chunks' texts are joined with a space.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from slm_jax.audio.files import split_audio
from slm_jax.errors import UserError

PAD_ID = 0
EOS_ID = 1

_Item = TypeVar("_Item")


class SpeechModel(Protocol):
  """What evaluation and inference ask of a model.

  `tokenizer` is a sentencepiece processor. `max_samples` is the longest audio of one call, in
  samples at 16 kHz. Attribute `language_model` (evaluation only) has `generate(tokens=, mask=,
  max_new_tokens=, num_beams=, length_penalty=)`.
  """

  @property
  def tokenizer(self) -> Any: ...

  @property
  def max_samples(self) -> int: ...

  @property
  def language_model(self) -> Any: ...

  def generate(
    self,
    audio: np.ndarray,  # int16 [B, S]
    lengths: np.ndarray,  # int32 [B], samples
    prompt_tokens: np.ndarray,  # int32 [B, P], pad 0
    *,
    max_new_tokens: int,
    num_beams: int,
    length_penalty: float,
  ) -> Any:
    """→ `.ids` int32 [B, T], `.scores` float32 [B]."""
    ...

  @property
  def has_ctc(self) -> bool:
    """Whether `ctc_transcribe` can be asked."""
    ...

  def ctc_transcribe(self, audio: np.ndarray, lengths: np.ndarray) -> list[str]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
  """How texts are searched for, and the batch size B of every call."""

  batch_size: int = 16
  max_new_tokens: int = 64
  num_beams: int = 1
  length_penalty: float = 1.0

  def __post_init__(self):
    for name in ("batch_size", "max_new_tokens", "num_beams"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if not math.isfinite(self.length_penalty):
      raise ValueError(f"{self.length_penalty=} must be finite")

  def decoding(self) -> dict[str, Any]:
    """The keyword arguments of `generate`."""
    return {
      "max_new_tokens": self.max_new_tokens,
      "num_beams": self.num_beams,
      "length_penalty": self.length_penalty,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
  """Samples `start:stop` of one recording and what the model made of them."""

  start: int
  stop: int
  text: str
  score: float  # the model's own, NaN where it gives none
  seconds: float  # share of its batch's wall time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
  """The text of one whole recording."""

  chunks: tuple[Chunk, ...]

  @property
  def text(self) -> str:
    return " ".join(chunk.text for chunk in self.chunks if chunk.text)

  @property
  def score(self) -> float:
    """Mean of the chunks' scores; NaN without a chunk."""
    if not self.chunks:
      return math.nan
    return sum(chunk.score for chunk in self.chunks) / len(self.chunks)

  @property
  def seconds(self) -> float:
    return sum(chunk.seconds for chunk in self.chunks)


def prompt_ids(tokenizer: Any, instruction: str) -> list[int]:
  """An instruction as the model reads it: its pieces, then EOS."""
  return [*tokenizer.encode(instruction), EOS_ID]


def decode_ids(tokenizer: Any, ids: Iterable[int]) -> str:
  """Text of one row of generated ids: up to EOS, without padding.

  Ids past the tokenizer's vocabulary are dropped: an LM's vocabulary may be padded to a round size.
  """
  kept: list[int] = []
  size = tokenizer.vocab_size()
  for token in ids:
    if token == EOS_ID:
      break
    if token != PAD_ID and token < size:
      kept.append(int(token))
  return tokenizer.decode(kept)


def padded_length(lengths: Iterable[int], multiple: int = 16) -> int:
  """The declared length that fits all `lengths`: their maximum, rounded up to `multiple`."""
  return max(1, math.ceil(max(lengths, default=1) / multiple)) * multiple


def pad_rows(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
  """Token rows → int32 `[B, length]`, padded with 0. Raises ValueError for a row that is longer."""
  result = np.full((len(rows), length), PAD_ID, np.int32)
  for i, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f"row {i} has {len(row)} tokens, more than the declared {length}")
    result[i, : len(row)] = row
  return result


def hypothesise(
  model: SpeechModel,
  requests: Iterable[tuple[np.ndarray, str]],
  settings: GenerationSettings,
  *,
  prompt_length: int,
  on_samples: Callable[[int], None] | None = None,
) -> Iterator[Hypothesis]:
  """The SLM's text of each (audio int16 `[S]`, instruction), in order.

  Lazy: reads only as many requests as fill the next batch. `prompt_length` is the declared P;
  an instruction that needs more raises `UserError`. `on_samples` is called after each batch with
  the number of samples it held.
  """

  def run(chunks: list[tuple[np.ndarray, str]]) -> list[tuple[str, float]]:
    prompts = []
    for _, instruction in chunks:
      prompt = prompt_ids(model.tokenizer, instruction)
      if len(prompt) > prompt_length:
        raise UserError(
          f"instruction {instruction[:40]!r} has {len(prompt)} tokens, more than the limit of"
          f" {prompt_length}; shorten it"
        )
      prompts.append(prompt)
    audio, lengths = audio_batch([samples for samples, _ in chunks], model.max_samples)
    result = model.generate(audio, lengths, pad_rows(prompts, prompt_length), **settings.decoding())
    ids, scores = np.asarray(result.ids), np.asarray(result.scores)
    return [
      (decode_ids(model.tokenizer, row), float(score))
      for row, score in zip(ids, scores, strict=True)
    ]

  return by_chunks(requests, run, model.max_samples, settings.batch_size, on_samples)


def transcribe_with_ctc(
  model: SpeechModel, recordings: Iterable[np.ndarray], batch_size: int
) -> Iterator[Hypothesis]:
  """The frozen speech encoder's own greedy CTC text of each recording int16 `[S]`, in order."""

  def run(chunks: list[tuple[np.ndarray, str]]) -> list[tuple[str, float]]:
    audio, lengths = audio_batch([samples for samples, _ in chunks], model.max_samples)
    return [(text, math.nan) for text in model.ctc_transcribe(audio, lengths)]

  return by_chunks(((samples, "") for samples in recordings), run, model.max_samples, batch_size)


def answer_texts(
  model: SpeechModel, requests: Sequence[tuple[str, str]], settings: GenerationSettings
) -> Iterator[str]:
  """The text oracle: the frozen LM on (correct transcript, instruction), without any speech.

  Transcript and instruction are tokenised apart and concatenated, as speech and instruction are.
  """
  rows = [
    [*model.tokenizer.encode(transcript), *prompt_ids(model.tokenizer, instruction)]
    for transcript, instruction in requests
  ]
  length = padded_length(len(row) for row in rows)
  for batch, real in _full_batches(iter(rows), settings.batch_size):
    tokens = pad_rows(batch, length)
    result = model.language_model.generate(
      tokens=tokens, mask=tokens != PAD_ID, **settings.decoding()
    )
    for row in np.asarray(result.ids)[:real]:
      yield decode_ids(model.tokenizer, row)


def by_chunks(
  requests: Iterable[tuple[np.ndarray, str]],
  run: Callable[[list[tuple[np.ndarray, str]]], list[tuple[str, float]]],
  max_samples: int,
  batch_size: int,
  on_samples: Callable[[int], None] | None = None,
) -> Iterator[Hypothesis]:
  """Cuts recordings into chunks, runs full batches of them across recordings, and regroups."""

  def pieces() -> Iterator[tuple[np.ndarray, str, int, int, bool]]:
    for samples, instruction in requests:
      ranges = split_audio(samples, max_samples)
      if not ranges:
        raise ValueError("a recording has no samples")
      for start, stop in ranges:
        yield samples[start:stop], instruction, start, stop, stop == len(samples)

  done: list[Chunk] = []
  for batch, real in _full_batches(pieces(), batch_size):
    begin = time.perf_counter()
    results = run([(samples, instruction) for samples, instruction, *_ in batch])
    seconds = (time.perf_counter() - begin) / real
    if on_samples is not None:
      on_samples(sum(len(samples) for samples, *_ in batch[:real]))
    for (_, _, start, stop, last), (text, score) in zip(batch[:real], results, strict=False):
      done.append(Chunk(start=start, stop=stop, text=text, score=score, seconds=seconds))
      if last:
        yield Hypothesis(chunks=tuple(done))
        done = []


def _full_batches(items: Iterator[_Item], size: int) -> Iterator[tuple[list[_Item], int]]:
  """Yields (exactly `size` items, how many are real).

  The last batch repeats its first item rather than adding empty rows: a decoder ends a batch when
  every row has ended, and an empty row may babble until the limit.
  """
  batch: list[_Item] = []
  for item in items:
    batch.append(item)
    if len(batch) == size:
      yield batch, size
      batch = []
  if batch:
    yield batch + [batch[0]] * (size - len(batch)), len(batch)


def audio_batch(chunks: Sequence[np.ndarray], samples: int) -> tuple[np.ndarray, np.ndarray]:
  """Recordings of at most `samples` → (int16 [B, samples], lengths int32 [B])."""
  audio = np.zeros((len(chunks), samples), np.int16)
  for i, chunk in enumerate(chunks):
    audio[i, : len(chunk)] = chunk
  return audio, np.asarray([len(chunk) for chunk in chunks], np.int32)
