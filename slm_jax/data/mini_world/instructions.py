"""English wordings of every task; the last two of each are never seen in training.

The question task has no wordings: its instruction is the question.
"""

from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.splits import Split, check_split

LANGUAGE_NAMES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French"}
NUM_HELD_OUT = 2

WORDINGS: dict[str, tuple[str, ...]] = {
  "repeat": (
    "Transcribe this.",
    "Write down what was said.",
    "Repeat this.",
    "Repeat the sentence.",
    "Write this down.",
    "Copy the sentence.",
    "Say it again.",
    "What was said?",
    "Write the sentence.",
    "Give the exact words.",
    "Transcribe the sentence.",
    "Repeat the exact words.",
    "Write down the words.",
    "Say this again.",
  ),
  "translate": (
    "Translate to {language}.",
    "Translate this to {language}.",
    "Translate into {language}.",
    "Say this in {language}.",
    "Write this in {language}.",
    "Put this into {language}.",
    "How do you say this in {language}?",
    "Give the {language} translation.",
    "Give this in {language}.",
    "What is this in {language}?",
    "Translate the sentence into {language}.",
    "Now in {language}.",
    "Say it in {language}.",
    "Translate this into {language}.",
  ),
  "list_names": (
    "List the names.",
    "List all names.",
    "Which names are there?",
    "Give the names.",
    "Write the names.",
    "What are the names?",
    "Name the people.",
    "Which names were said?",
    "Find the names.",
    "Give all names.",
    "Say the names.",
    "Only the names.",
    "Find all names.",
    "Write down the names.",
  ),
  "reverse": (
    "Reverse the words.",
    "Reverse the word order.",
    "Write the words backwards.",
    "Say the words backwards.",
    "Turn the words around.",
    "Give the words in reverse.",
    "Last word first.",
    "Reverse this.",
    "Words in reverse order.",
    "Put the words in reverse.",
    "Reverse the sentence.",
    "Say this backwards.",
    "Write this backwards.",
    "Give the reverse word order.",
  ),
  "continue": (
    "Continue.",
    "Continue this.",
    "Continue the story.",
    "What happens next?",
    "What happens then?",
    "Say what happens next.",
    "Tell what happens then.",
    "Go on.",
    "Go on with the story.",
    "What comes next?",
    "Write the next sentence.",
    "Give the next sentence.",
    "Say what happens then.",
    "Continue with the next sentence.",
  ),
  "reply": (
    "Reply.",
    "Reply to this.",
    "Answer with yes.",
    "Give a reply.",
    "Confirm this.",
    "Say yes to this.",
    "Reply with yes.",
    "Give a short reply.",
    "Agree with this.",
    "Say that this is true.",
    "Write a reply.",
    "Write a short reply.",
    "Reply that this is true.",
    "Confirm with a short reply.",
  ),
  "first_word": (
    "Say the first word.",
    "Write the first word.",
    "What is the first word?",
    "Give the first word.",
    "Only the first word.",
    "First word.",
    "Which word comes first?",
    "Write down the first word.",
  ),
  "last_word": (
    "Say the last word.",
    "Write the last word.",
    "What is the last word?",
    "Give the last word.",
    "Only the last word.",
    "Last word.",
    "Which word comes last?",
    "Write down the last word.",
  ),
}


def wordings(task: str, split: Split, target_language: str | None = None) -> tuple[str, ...]:
  """The wordings of `task` that `split` may use; "translate" needs the target language.

  Raises:
    ValueError: an unknown task or split, or a missing or superfluous target language.
  """
  check_split(split)
  if task not in WORDINGS:
    raise ValueError(f"{task=} has no wordings; those that do: {sorted(WORDINGS)}")
  if (target_language is not None) != (task == "translate"):
    raise ValueError(f"{target_language=} does not fit {task=}: only 'translate' takes one")
  cut = len(WORDINGS[task]) - NUM_HELD_OUT
  chosen = WORDINGS[task][:cut] if split == "train" else WORDINGS[task][cut:]
  if target_language is None:
    return chosen
  if target_language not in LANGUAGES:
    raise ValueError(f"{target_language=} is not one of {LANGUAGES}")
  return tuple(text.format(language=LANGUAGE_NAMES[target_language]) for text in chosen)
