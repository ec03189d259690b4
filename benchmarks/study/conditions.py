"""What an adapter of the study is asked: the same held-out utterances under several instructions."""

import dataclasses
from collections.abc import Iterator, Sequence

from slm_jax.data.mini_world.biasing import name_list, with_names
from slm_jax.data.mini_world.splits import Draws

MODULE = "tasks.mini_study"
# Condition → SeqIO task of the same utterances.
TASKS = {
  "asr": "study_asr",
  "wordings": "study_wordings",
  "ast_trained": "study_ast",
  "ast_unseen": "study_ast_unseen",
  "question": "study_question",
  "list_names": "study_list_names",
  "reverse": "study_reverse",
  "continue": "study_continue",
  "reply": "study_reply",
}
LIST_LENGTHS = (5, 20, 100)
SHORT = ("asr", "ast_unseen", "question", "reverse", "names_20")
PROBED = ("asr", "ast_unseen", "question")  # with wrong audio and with none
NAMES_TASK = "study_names"


def names_conditions() -> Iterator[tuple[str, int, bool]]:
  """(condition, distractors, whether the list holds the names that are said)."""
  yield "names_none", 0, False
  for count in LIST_LENGTHS:
    yield f"names_{count}", count, True
    yield f"names_{count}_anti", count, False


def kind_of(condition: str) -> str:
  """The kind of task, as `slm_jax eval` scores it."""
  if condition.startswith("names"):
    return "biasing"
  if condition in ("asr", "wordings"):
    return "transcription"
  return "translation" if condition.startswith("ast") else "answer"


def is_asked(system: str, condition: str) -> bool:
  """Whether a system answers in a condition: CTC knows of no instruction."""
  if system in ("shuffled", "silenced"):
    return condition in PROBED
  return system != "ctc" or condition in ("asr", "wordings", "names_none")


def with_list(examples: Sequence, num_distractors: int, listed: bool) -> list:
  """The examples of `NAMES_TASK` with other lists; shorter lists are not parts of longer ones."""
  changed = []
  for example in examples:
    asked = example.instruction.partition(" Names may be ")[0]
    said = example.names
    draws = Draws(num_distractors, _number(example.id), "heldout", "study")
    names: tuple[str, ...] = ()
    if num_distractors:
      names = name_list(said if listed else (), num_distractors, draws, "heldout")
      names = names if listed else tuple(name for name in names if name not in said)
    changed.append(dataclasses.replace(example, instruction=with_names(asked, names)))
  return changed


def _number(example_id: str) -> int:
  return int(example_id.rpartition("-")[2])
