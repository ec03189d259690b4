"""Texts of an evaluation that was broken off, so that it goes on where it was."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from slm_jax.evaluation.whole_file import write_whole

FOLDER = ".kept"
Answers = list[tuple[str, float]]  # text and score


class KeptTexts:
  """Texts by task and system, in files that are replaced in one move.

  A file is used only by an evaluation of the same model, code, examples and settings. With several
  processes the first one's files count; it writes them, and tells the others what they hold.
  """

  def __init__(
    self,
    folder: epath.Path,
    facts: Mapping[str, Any],
    *,
    seconds: float = 30.0,
    writes: bool = True,
    agree: Callable[[Any], Any] = lambda found: found,
  ):
    """
    Args:
      folder: of the files.
      facts: JSON-ready; all that the texts depend on beside what `load` is told.
      seconds: least time between two writes of a file that is not complete.
      writes: whether this process writes files.
      agree: what this process found -> what all use.
    """
    self._folder, self._facts, self._seconds = folder, dict(facts), seconds
    self._writes, self._agree = writes, agree
    self._written = time.monotonic()

  def load(self, task: str, system: str, facts: Mapping[str, Any]) -> Answers:
    """The first texts of a system, in order; none if there are none for these facts."""
    path, found = self._path(task, system), []
    if self._writes and path.is_file():
      try:
        kept = json.loads(path.read_text("utf-8"))
      except ValueError:
        kept = {}
      if isinstance(kept, dict) and kept.get("key") == self._key(facts):
        found = kept["answers"]
    return [(text, math.nan if score is None else score) for text, score in self._agree(found)]

  def save(
    self,
    task: str,
    system: str,
    facts: Mapping[str, Any],
    answers: Sequence[tuple[str, float]],
    *,
    complete: bool,
  ) -> None:
    """Keeps the texts so far: at once if they are all, else now and then."""
    if not self._writes or not (complete or time.monotonic() - self._written >= self._seconds):
      return
    rows = [(text, score if math.isfinite(score) else None) for text, score in answers]
    content = json.dumps({"key": self._key(facts), "answers": rows})
    write_whole(self._path(task, system), content.encode())
    self._written = time.monotonic()

  def clear(self) -> None:
    """Removes the files: the evaluation is written."""
    if self._writes and self._folder.is_dir():
      self._folder.rmtree()

  def _path(self, task: str, system: str) -> epath.Path:
    return self._folder / f"{task}-{system}.json"

  def _key(self, facts: Mapping[str, Any]) -> str:
    text = json.dumps([self._facts, dict(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
