"""Text-only instruction examples over the mini world: exact targets, fresh names in each."""

import dataclasses

from slm_jax.data.mini_world.biasing import biased_sentence, with_names
from slm_jax.data.mini_world.instructions import wordings
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.splits import Draws, Split
from slm_jax.data.mini_world.world import WorldSentence, sample_sentence

TASK_WEIGHTS = {
  "repeat": 0.22,
  "translate": 0.3,
  "question": 0.14,
  "list_names": 0.05,
  "reverse": 0.06,
  "continue": 0.06,
  "reply": 0.05,
  "first_word": 0.02,
  "last_word": 0.02,
  "biasing": 0.08,
}
TASKS = tuple(TASK_WEIGHTS)
NO_NAMES = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextExample:
  """One example. `target_language` equals `language` except in translation.

  `sentence` is what the LM reads: in "biasing" with names misheard.
  """

  id: str
  task: str
  language: str
  target_language: str
  sentence: str
  instruction: str
  target: str
  names: tuple[str, ...]


def reverse_words(sentence: str) -> str:
  """The words in reverse order, casing kept, the full stop staying at the end; its own inverse."""
  return " ".join(reversed(_words(sentence))) + "."


def _words(sentence: str) -> list[str]:
  return sentence.removesuffix(".").split(" ")


def target_of(sentence: WorldSentence, task: str, target_language: str) -> str:
  """The exact answer to a task that has wordings; `target_language` counts in translation."""
  if task == "list_names":
    return ", ".join(sentence.names) or NO_NAMES
  if task == "first_word":
    return _words(sentence.text())[0]
  if task == "last_word":
    return _words(sentence.text())[-1]
  if task == "reverse":
    return reverse_words(sentence.text())
  if task == "continue":
    return sentence.continuation()
  if task == "reply":
    return sentence.reply()
  return sentence.text(target_language)  # repeat, translate, biasing


def sample_text_example(
  seed: int,
  index: int,
  split: Split,
  *,
  task: str | None = None,
  language: str | None = None,
  target_language: str | None = None,
) -> TextExample:
  """The example of (seed, index, split), over the sentence `sample_sentence` gives for the same.

  Task, language and target language are drawn unless given; giving one keeps the meaning.
  Patterns, names and wordings are those of the split.

  Raises:
    ValueError: an unknown split, task or language, or a target language that the task cannot have.
  """
  sentence = sample_sentence(seed, index, split, language)
  draws = Draws(seed, index, split, "example")
  drawn_task = draws.weighted(TASK_WEIGHTS)
  task = task or drawn_task
  if task not in TASKS:
    raise ValueError(f"{task=} is not one of {TASKS}")
  others = tuple(other for other in LANGUAGES if other != sentence.language)
  drawn_target = draws.choice(others)
  if target_language is None:
    target_language = drawn_target if task == "translate" else sentence.language
  allowed = others if task == "translate" else (sentence.language,)
  if target_language not in allowed:
    raise ValueError(f"{target_language=} does not fit {task=} from {sentence.language!r}")
  text = sentence.text()
  if task == "question":
    instruction, target = draws.choice(sentence.questions())
  else:
    asked = "repeat" if task == "biasing" else task
    options = wordings(asked, split, target_language if task == "translate" else None)
    instruction, target = draws.choice(options), target_of(sentence, task, target_language)
  if task == "biasing":
    text, names = biased_sentence(text, sentence.names, draws, split)
    instruction = with_names(instruction, names)
  return TextExample(
    id=f"mini-{split}-{seed}-{index}",
    task=task,
    language=sentence.language,
    target_language=target_language,
    sentence=text,
    instruction=instruction,
    target=target,
    names=sentence.names,
  )
