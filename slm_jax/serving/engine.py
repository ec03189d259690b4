"""Answers batches of requests at declared shapes, an adapter for each row, tokens as they come."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.evaluation.generation import EOS_ID, audio_batch, pad_rows
from slm_jax.models.incremental_decoding import RowOptions, advance, start
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.serving import adapter_slots
from slm_jax.serving.adapter_slots import AdapterSlots


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
  """Declared shapes; each audio length is compiled once, before the first request.

  Attributes:
    batch_size: rows B of every call.
    audio_seconds: longest audio of a call, growing; a batch has the first that holds its rows.
    prompt_length: longest instruction P, in tokens.
    max_new_tokens: longest answer to one piece of audio, in tokens.
    tokens_a_call: after so many tokens the host hears what is new.
  """

  batch_size: int = 8
  audio_seconds: tuple[float, ...] = (5.0, 15.0, 30.0)
  prompt_length: int = 64
  max_new_tokens: int = 256
  tokens_a_call: int = 8

  def __post_init__(self):
    for name in ("batch_size", "prompt_length", "max_new_tokens", "tokens_a_call"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    growing = all(a < b for a, b in zip(self.audio_seconds, self.audio_seconds[1:], strict=False))
    if not self.audio_seconds or self.audio_seconds[0] <= 0 or not growing:
      raise ValueError(f"audio_seconds={self.audio_seconds}: expected lengths above 0 that grow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One piece of audio and what is asked about it.

  Attributes:
    audio: int16 [S] at 16 kHz.
    prompt: ids of the instruction, EOS last.
    slot: of its adapter.
    max_new_tokens: at most the engine's.
    temperature: 0 is greedy.
    seed: of the draws.
  """

  audio: np.ndarray
  prompt: Sequence[int]
  slot: int
  max_new_tokens: int
  temperature: float = 0.0
  seed: int = 0


# (row, its new tokens without EOS, whether it has ended) -> whether anybody still wants it.
OnTokens = Callable[[int, list[int], bool], bool]


class Engine:
  """A pair of bases with adapters, on the default device.

  Calls come from one thread. Attribute `max_samples` is the longest audio of a row.
  """

  def __init__(self, model: SpeechLanguageModel, adapters: AdapterSlots, config: EngineConfig):
    """`model`'s own adapter is not used; what else it trains is shared by all."""
    lengths = (min(int(s * SAMPLE_RATE), model.max_samples) for s in config.audio_seconds)
    self._lengths = tuple(dict.fromkeys(lengths))
    self.config, self.adapters, self.tokenizer = config, adapters, model.tokenizer
    self.max_samples = self._lengths[-1]
    self._model = model.model
    bases = {part: tree for part, tree in model.params.items() if part != "adapter"}
    self._bases = jax.device_put(bases)

  def warm_up(self) -> None:
    """Compiles everything that requests can ask for."""
    for samples in self._lengths:
      row = Row(
        audio=np.zeros(samples, np.int16),
        prompt=[EOS_ID],
        slot=0,
        max_new_tokens=1,
        temperature=1.0,
      )
      self.answer([row], lambda *unused: True)

  def compiled_programs(self) -> int:
    """Of the functions that answer, in this process."""
    functions: Any = (adapter_slots.encode, start, advance)
    return sum(function._cache_size() for function in functions)

  def audio_length(self, samples: int) -> int:
    """Index of the declared length that holds so many samples, at most `max_samples`."""
    return next(i for i, length in enumerate(self._lengths) if samples <= length)

  def answer(self, rows: Sequence[Row], on_tokens: OnTokens) -> None:
    """Answers up to `batch_size` rows; returns when all have ended or are wanted no more.

    Raises:
      ValueError: a row that is longer than declared.
    """
    config = self.config
    padded = [*rows, *[rows[0]] * (config.batch_size - len(rows))]
    samples = self._lengths[self.audio_length(max(len(row.audio) for row in rows))]
    audio, lengths = audio_batch([row.audio for row in padded], samples)
    prompt = pad_rows([row.prompt for row in padded], config.prompt_length)
    slots = np.asarray([row.slot for row in padded], np.int32)
    memory, mask = adapter_slots.encode(
      self._model, self._bases, self.adapters.stack, slots, audio, lengths, prompt
    )
    lm, params = self._model.config.language_model, self._bases["language_model"]
    state = start(lm, config.max_new_tokens, params, memory, mask)
    # Rows that fill the batch up end at once, so that nothing waits for them.
    limits = np.asarray([min(r.max_new_tokens, config.max_new_tokens) for r in padded], np.int32)
    limits[len(rows) :] = 0
    temperatures = np.asarray([row.temperature for row in padded], np.float32)
    seeds = np.asarray([row.seed % 2**32 for row in padded], np.uint32)
    told, open_rows = 0, set(range(len(rows)))
    while open_rows:
      options = RowOptions(*jax.device_put((limits.copy(), temperatures, seeds)))
      state = advance(lm, config.tokens_a_call, params, state, mask, options)
      index, ids, done = int(state.index), np.asarray(state.ids), np.asarray(state.done)
      for i in sorted(open_rows):
        new = [int(token) for token in ids[i, told:index]]
        kept = new[: next((k for k, t in enumerate(new) if t in (EOS_ID, lm.pad_id)), len(new))]
        if not on_tokens(i, kept, bool(done[i])):
          limits[i] = 0
        if done[i] or not limits[i]:
          open_rows.remove(i)
      told = index
