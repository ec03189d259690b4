"""Single examples of a task, for evaluation."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from slm_jax.data.provider import contents, hide_accelerators, open_provider
from slm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechExample:
  """One utterance with an instruction and the answer expected. Text that a task lacks is "".

  `names` are the words that the answer must get right though they are rare, the biasing words: an example's field
  `names`, in which | stands between them.
  """

  id: str
  task: str
  audio: np.ndarray  # int16 [S], 16 kHz
  instruction: str
  target: str
  transcript: str
  language: str
  target_language: str
  voice: str
  names: tuple[str, ...] = ()


class EvalExamples:
  """The examples of a task's split, in the order of the data, each time it is iterated.

  Attributes:
    skipped: examples left out of the last iteration because their audio was longer than
      `max_samples`.
    facts: version of the data, JSON-ready: the split, its number of examples, and a digest of the cache.
  """

  def __init__(
    self,
    task_name: str,
    split: str = "validation",
    *,
    max_samples: int | None = None,
    max_examples: int | None = None,
    use_cached: bool = True,
  ):
    """Raises UserError if the task has no such split, no audio, or lacks its cache."""
    hide_accelerators()
    self._task = open_provider(task_name, split, use_cached)
    if "audio" not in self._task.output_features:
      raise UserError(
        f"task {task_name} has no audio; its features: {sorted(self._task.output_features)}"
      )
    self._split = split
    self._max_samples = max_samples
    self._max_examples = max_examples
    self._use_cached = use_cached
    self.skipped = 0
    self.facts = {"split": split, **contents(self._task, split, use_cached)[self._task.name]}

  def __iter__(self) -> Iterator[SpeechExample]:
    self.skipped = 0
    yielded = 0
    dataset = self._task.get_dataset(
      None, self._split, use_cached=self._use_cached, shuffle=False, try_in_mem_cache=False
    )
    for example in dataset.as_numpy_iterator():
      if yielded == self._max_examples:
        return
      if self._max_samples is not None and len(example["audio"]) > self._max_samples:
        self.skipped += 1
        continue
      yielded += 1
      yield _speech_example(example)


def _speech_example(example: dict) -> SpeechExample:
  def text(name: str, default: str = "") -> str:
    return example[name].decode() if name in example else default

  return SpeechExample(
    id=text("id"),
    task=text("task"),
    audio=example["audio"],
    instruction=text("inputs_pretokenized"),
    target=text("targets_pretokenized"),
    transcript=text("transcript"),
    language=text("language"),
    target_language=text("target_language"),
    voice=text("voice"),
    names=tuple(filter(None, text("names").split("|"))),
  )
