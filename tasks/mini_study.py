"""The miniature study's tasks: what its adapters are trained on, and what they never heard anything like.

Trained on, as mixture `study_slm`: transcription, translation from and into English, and two small
instructions (the first word, the last word). Measured on besides: the other six pairs of languages
(`study_ast_unseen`), five instructions never trained with speech (`study_question`, `study_list_names`,
`study_reverse`, `study_continue`, `study_reply`), wordings never trained (`study_wordings`), and names that were never
heard, with a list (`study_names`).

`study_one_slm` has one wording for each task, `study_<n>_slm` about n utterances, `study_deaf_slm` audio of other
sentences than the targets': an adapter trained on that has nothing to listen to.
"""

import itertools
from collections.abc import Iterator

import seqio

from slm_jax.data.example_source import Example
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.data.speech_tasks import add_speech_task
from slm_jax.data.vocabulary import MINI_VOCABULARY, vocabulary

VOCABULARY = vocabulary(MINI_VOCABULARY)
NUM_EVALUATED = 120
PAIRS = set(itertools.permutations(LANGUAGES, 2))
TRAINED_PAIRS = {pair for pair in PAIRS if "en" in pair}
# World's task → utterances to train on, and the seed of its sentences.
TRAINED = {
  "repeat": (4_000, 11),
  "translate": (4_000, 12),
  "first_word": (600, 13),
  "last_word": (600, 14),
}
NEVER_TRAINED = {"question": 15, "list_names": 16, "reverse": 17, "continue": 18, "reply": 19}
NAMES = {"repeat": "asr", "translate": "ast"}
SMALLER = {"92": 100, "460": 20, "1840": 5}  # utterances, and of how many the one that is kept


class DeafSpeech(MiniSpeechSource):
  """Utterances whose audio is the next one's, in the same language."""

  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    audio = super().make_examples(split, start + len(LANGUAGES), stop + len(LANGUAGES))
    for index, example in zip(range(start, stop), audio, strict=False):
      said = self.utterance(split, index)
      texts = {name: getattr(said, name).encode() for name in self.fields if name != "audio"}
      yield {**texts, "audio": example["audio"]}


def _register(
  prefix: str, one_in: int = 1, validation: bool = False, made=MiniSpeechSource, **settings
) -> None:
  """The mixture `<prefix>_slm` and its tasks, over one in `one_in` of the utterances."""
  rates = []
  for task, (count, seed) in TRAINED.items():
    sizes = {"train": count // one_in} | ({"validation": NUM_EVALUATED} if validation else {})
    pairs = TRAINED_PAIRS if task == "translate" else None
    name = f"{prefix}_{NAMES.get(task, task)}"
    source = made(task, sizes, seed=seed, pairs=pairs, **settings)
    add_speech_task(name, source, VOCABULARY, kind=_kind(task))
    rates.append((name, float(count)))
  seqio.MixtureRegistry.add(f"{prefix}_slm", rates)


def _kind(task: str) -> str:
  kinds = {"repeat": "transcription", "translate": "translation", "biasing": "biasing"}
  return kinds.get(task, "answer")


def _register_evaluated(name: str, task: str, seed: int, **settings) -> None:
  source = MiniSpeechSource(task, {"validation": NUM_EVALUATED}, seed=seed, **settings)
  add_speech_task(name, source, VOCABULARY, kind=_kind(task))


_register("study", validation=True)
_register("study_one", num_wordings=1)
_register("study_deaf", one_in=5, made=DeafSpeech)
for _name, _one_in in SMALLER.items():
  _register(f"study_{_name}", _one_in)
for _task, _seed in NEVER_TRAINED.items():
  _register_evaluated(f"study_{_task}", _task, _seed)
_register_evaluated("study_ast_unseen", "translate", 20, pairs=PAIRS - TRAINED_PAIRS)
_register_evaluated("study_wordings", "repeat", 21, wording_split="heldout")
_register_evaluated("study_names", "biasing", 22)
