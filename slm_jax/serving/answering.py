"""From a request to its answer: pieces of audio through the batcher, texts out of tokens."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from slm_jax.audio.files import SAMPLE_RATE, split_audio
from slm_jax.bundle.manifest import Manifest
from slm_jax.errors import UserError
from slm_jax.evaluation.generation import decode_ids, prompt_ids
from slm_jax.serving.adapter_slots import AdapterSlots
from slm_jax.serving.batcher import Answer, Batcher, Failed, QueueFull
from slm_jax.serving.engine import Engine, Row
from slm_jax.serving.errors import BadRequest, Busy, NotFound, RequestError
from slm_jax.serving.requests import AudioRequest
from slm_jax.serving.subtitles import Segment

# Of bytes that are not a whole character yet.
_UNFINISHED = "\ufffd"


class Reply:
  """One answer while it grows.

  Attributes:
    id, created: as OpenAI's objects have them.
    seconds: of the audio.
    ids: of each piece, so far.
  """

  def __init__(
    self, tokenizer: Any, answers: list[Answer], ranges: list[tuple[int, int]], prompt_tokens: int
  ):
    """`answers` of pieces that stand at `ranges` (samples) of the recording, in order."""
    self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    self.seconds = ranges[-1][1] / SAMPLE_RATE
    self.ids: list[list[int]] = [[] for _ in answers]
    self._tokenizer, self._answers, self._ranges = tokenizer, answers, ranges
    self._prompt_tokens = prompt_tokens

  @property
  def text(self) -> str:
    """So far."""
    texts = (decode_ids(self._tokenizer, ids) for ids in self.ids)
    return " ".join(text for text in texts if text)

  @property
  def finish_reason(self) -> str:
    """ "length" if a piece came to its limit, else "stop"."""
    pairs = zip(self.ids, self._answers, strict=True)
    at_limit = any(len(ids) >= answer.row.max_new_tokens for ids, answer in pairs)
    return "length" if at_limit else "stop"

  def usage(self) -> dict[str, int]:
    """Tokens, as OpenAI counts them; speech counts none."""
    completion = sum(map(len, self.ids))
    return {
      "prompt_tokens": self._prompt_tokens,
      "completion_tokens": completion,
      "total_tokens": self._prompt_tokens + completion,
    }

  def segments(self) -> list[Segment]:
    """The pieces with their times."""
    return [
      Segment(start / SAMPLE_RATE, stop / SAMPLE_RATE, decode_ids(self._tokenizer, ids))
      for (start, stop), ids in zip(self._ranges, self.ids, strict=True)
    ]

  async def deltas(self) -> AsyncIterator[str]:
    """What the text grows by. Raises RequestError if the engine fails."""
    shown = ""
    try:
      for ids, answer in zip(self.ids, self._answers, strict=True):
        async for tokens in answer.tokens():
          ids += tokens
          text = self.text
          if text.endswith(_UNFINISHED) or not text.startswith(shown):
            continue
          if delta := text.removeprefix(shown):
            yield delta
          shown = text
    except Failed as error:
      raise RequestError("the model failed on this request") from error
    if delta := self.text.removeprefix(shown):
      yield delta

  async def finish(self) -> None:
    """Waits for the end."""
    async for _ in self.deltas():
      pass

  def cancel(self) -> None:
    """Nobody waits any more; harmless at the end."""
    for answer in self._answers:
      answer.cancel()


class Answerer:
  """An engine with its batcher, and the instructions of its adapters."""

  def __init__(self, engine: Engine, batcher: Batcher, manifests: dict[str, Manifest]):
    self._engine, self._batcher = engine, batcher
    self._instructions = {name: m.instructions for name, m in manifests.items()}
    self.ready = False

  @property
  def adapters(self) -> AdapterSlots:
    """By name."""
    return self._engine.adapters

  def start(self) -> None:
    """Compiles, then begins to answer."""
    self._engine.warm_up()
    self._batcher.start()
    self.ready = True

  def close(self) -> None:
    """Requests that wait fail."""
    self.ready = False
    self._batcher.close()

  def compiled_programs(self) -> int:
    """Of the engine, so far."""
    return self._engine.compiled_programs()

  def instruction(self, model: str, task: str, **fields: str) -> str:
    """What an adapter's bundle says for a task; raises NotFound or BadRequest."""
    if model not in self._instructions:
      known = ", ".join(sorted(self._instructions))
      raise NotFound(
        f"no model {model!r}; there are {known}", param="model", code="model_not_found"
      )
    text = self._instructions[model].get(task)
    if text is None:
      raise BadRequest(
        f"the bundle of {model!r} has no instruction {task!r}; say what to do at /v1/chat/completions",
        param="model",
      )
    for name, value in fields.items():
      text = text.replace("{" + name + "}", value)
    return text

  def ask(self, asked: AudioRequest) -> Reply:
    """Queues a request. Raises NotFound, BadRequest, or Busy."""
    try:
      slot = self.adapters.slot(asked.model)
    except UserError as error:
      raise NotFound(str(error), param="model", code="model_not_found") from error
    config = self._engine.config
    prompt = prompt_ids(self._engine.tokenizer, asked.instruction or "")
    if len(prompt) > config.prompt_length:
      raise BadRequest(
        f"the instruction has {len(prompt)} tokens, more than the {config.prompt_length} that this "
        "server takes",
        param="messages",
      )
    limit = min(asked.max_tokens or config.max_new_tokens, config.max_new_tokens)
    ranges = split_audio(asked.audio, self._engine.max_samples)
    rows = [
      Row(
        audio=asked.audio[start:stop],
        prompt=prompt,
        slot=slot,
        max_new_tokens=limit,
        temperature=asked.temperature,
        seed=asked.seed + i,
      )
      for i, (start, stop) in enumerate(ranges)
    ]
    try:
      answers = self._batcher.submit(rows)
    except QueueFull:
      raise Busy("too many requests wait; try again", code="queue_full") from None
    return Reply(self._engine.tokenizer, answers, ranges, len(prompt))
