"""Single text examples of a task, for scoring a text LM."""

import dataclasses
from collections.abc import Iterator

import seqio


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextExample:
  """A text with an instruction about it and the exact answer."""

  task: str
  language: str
  sentence: str
  instruction: str
  target: str


def text_examples(task_name: str, split: str, max_examples: int) -> Iterator[TextExample]:
  """The first examples of a cached text task's split, in the order of the data."""
  fields = [field.name for field in dataclasses.fields(TextExample)]
  dataset = seqio.get_mixture_or_task(task_name).get_dataset(
    None, split, use_cached=True, shuffle=False, try_in_mem_cache=False
  )
  for example in dataset.take(max_examples).as_numpy_iterator():
    yield TextExample(**{name: example[name].decode() for name in fields})
