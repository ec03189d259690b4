"""Rows of many clients gathered into batches: one thread calls the engine, clients wait on an event loop."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from slm_jax.serving.engine import Engine, Row
from slm_jax.serving.metrics import Metrics


class QueueFull(Exception):
  """As many rows wait as may."""


class Failed(Exception):
  """The batch of a row failed; the text is for the log, not for the client."""


@dataclasses.dataclass(eq=False)
class Answer:
  """A row that waits or is answered; who no longer wants the answer cancels it."""

  row: Row
  loop: asyncio.AbstractEventLoop
  queue: asyncio.Queue  # lists of ids, None at the end, or an exception
  arrived: float
  cancelled: bool = False

  async def tokens(self) -> AsyncIterator[list[int]]:
    """New tokens, as they come. Raises Failed."""
    while (value := await self.queue.get()) is not None:
      if isinstance(value, Exception):
        raise value
      yield value

  def cancel(self) -> None:
    """Its row ends early; harmless afterwards."""
    self.cancelled = True

  def tell(self, *values: Any) -> None:
    def put() -> None:
      for value in values:
        self.queue.put_nowait(value)

    # A client whose loop is gone hears nothing any more.
    if not self.loop.is_closed():
      self.loop.call_soon_threadsafe(put)


class Batcher:
  """Forms batches of rows in the order in which they came.

  A batch begins with the row that waits longest; others that its audio length holds join it, until
  it is full or that row has waited `max_wait` seconds.
  """

  def __init__(self, engine: Engine, metrics: Metrics, *, max_queue: int, max_wait: float):
    """`max_queue`: rows that may wait."""
    self._engine, self._metrics = engine, metrics
    self._max_queue, self._max_wait = max_queue, max_wait
    self._waiting: list[Answer] = []
    self._changed = threading.Condition()
    self._closed = False
    self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

  def start(self) -> None:
    """Begins to answer."""
    self._thread.start()

  def close(self) -> None:
    """Ends after the batch that runs; rows that wait fail."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    if self._thread.is_alive():
      self._thread.join()

  def submit(self, rows: list[Row]) -> list[Answer]:
    """Queues the rows of one request; called on the event loop that will read the answers.

    Raises:
      QueueFull: not all of them have room.
    """
    loop, now = asyncio.get_running_loop(), time.monotonic()
    answers = [Answer(row, loop, asyncio.Queue(), now) for row in rows]
    with self._changed:
      if self._closed or len(self._waiting) + len(rows) > self._max_queue:
        raise QueueFull
      self._waiting += answers
      self._metrics.queue.set(len(self._waiting))
      self._changed.notify()
    return answers

  def _work(self) -> None:
    while (batch := self._next_batch()) is not None:
      if not batch:
        continue
      try:
        self._answer(batch)
      except Exception as error:  # the thread must live on: other clients wait
        self._metrics.failed_batches.inc()
        for answer in batch:
          answer.tell(Failed(f"{type(error).__name__}: {error}"))

  def _answer(self, batch: list[Answer]) -> None:
    began = time.monotonic()
    self._metrics.batch_rows.observe(len(batch))

    def on_tokens(i: int, tokens: list[int], done: bool) -> bool:
      self._metrics.tokens.inc(len(tokens))
      batch[i].tell(*([tokens] if tokens else []), *([None] if done else []))
      return not batch[i].cancelled

    self._engine.answer([answer.row for answer in batch], on_tokens)
    self._metrics.batch_seconds.observe(time.monotonic() - began)

  def _next_batch(self) -> list[Answer] | None:
    """Waits for one; [] if all that waited were cancelled, None at the end."""
    with self._changed:
      while not self._waiting and not self._closed:
        self._changed.wait()
      while not self._closed and self._waiting:
        self._waiting = [answer for answer in self._waiting if not answer.cancelled]
        batch = self._candidates()
        left = self._max_wait - (time.monotonic() - batch[0].arrived) if batch else 0.0
        if len(batch) == self._engine.config.batch_size or left <= 0:
          self._waiting = [answer for answer in self._waiting if answer not in batch]
          self._metrics.queue.set(len(self._waiting))
          return batch
        self._changed.wait(left)
      if not self._closed:
        return []
      for answer in self._waiting:
        answer.tell(Failed("the server is closing"))
      self._waiting = []
      return None

  def _candidates(self) -> list[Answer]:
    if not self._waiting:
      return []
    longest = self._engine.audio_length(len(self._waiting[0].row.audio))
    fitting = (
      answer
      for answer in self._waiting
      if self._engine.audio_length(len(answer.row.audio)) <= longest
    )
    return [
      answer for _, answer in zip(range(self._engine.config.batch_size), fitting, strict=False)
    ]
