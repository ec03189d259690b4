"""The mini world's speech: sentences in many synthetic voices, with instructions and answers."""

import dataclasses
from collections.abc import Callable, Collection, Iterator

import numpy as np
import tensorflow as tf

from slm_jax.data import voices
from slm_jax.data.augmentation import AugmentationConfig, augment
from slm_jax.data.example_source import Example, ExampleSource
from slm_jax.data.mini_world.biasing import name_list, with_names
from slm_jax.data.mini_world.examples import target_of
from slm_jax.data.mini_world.instructions import wordings
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.splits import Draws, Split
from slm_jax.data.mini_world.world import WorldSentence, sample_sentence
from slm_jax.data.speech_synthesis import EspeakSynthesizer, SpeechSynthesizer
from slm_jax.data.text_corpus import NUM_PROBES, WORLD_SPLITS

TASKS = (
  "transcribe", "repeat", "translate", "question", "list_names", "reverse", "continue", "reply", "first_word",
  "last_word", "biasing",
)  # fmt: skip
MAX_SAMPLES = 64_000  # 4 s at 16 kHz


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
  """Everything about an utterance but its sound."""

  id: str
  task: str
  language: str
  target_language: str
  transcript: str
  instruction: str
  target: str
  voice: str
  # Names that are said, joined by |: what biased word error rates look at.
  names: str = ""


class MiniSpeechSource(ExampleSource):
  """Spoken sentences of the mini world for one task.

  * transcribe: no instruction, the target is the sentence (what CTC learns);
  * repeat: an instruction to say the sentence again;
  * translate: into each other language equally often;
  * question: the instruction is a question about the sentence;
  * biasing: as repeat, of sentences with names, and a list of names that holds them among others;
  * list_names, reverse, continue, reply, first_word, last_word: as of `mini_world.examples`.

  Languages take turns. "train" uses the training patterns, names and voices, every other split the
  held-out ones alone. Training voices are varied further (see `voice_variation`), the others left
  as they are. Utterances longer than `max_samples` are dropped and counted, never cut.
  """

  fields = dict.fromkeys(("audio", *(f.name for f in dataclasses.fields(Utterance))), tf.string)

  def __init__(
    self,
    task: str,
    num_candidates: dict[str, int],
    *,
    seed: int,
    examples_per_shard: int = 250,
    max_samples: int = MAX_SAMPLES,
    pairs: Collection[tuple[str, str]] | None = None,
    wording_split: Split = "train",
    num_wordings: int | None = None,
    num_distractors: int = 20,
    augmentation: AugmentationConfig | None = None,
    synthesizer: Callable[[], SpeechSynthesizer] = EspeakSynthesizer,
  ):
    """Args beyond the attributes:

    num_candidates: split ("train", "validation") → number of utterances before any is dropped.
    pairs: (from, to) languages of translate; None is all.
    wording_split: whose wordings of the instruction are used, in every split of the data.
    num_wordings: of them, from the first; None is all.
    num_distractors: names in the list of biasing that are not said.
    synthesizer: called in the process that makes the examples.

    Raises ValueError for an unknown task or language.
    """
    if task not in TASKS:
      raise ValueError(f"task={task!r} is not one of {TASKS}")
    languages = LANGUAGES if pairs is None else {source for source, _ in pairs}
    if not languages or set(languages) - set(LANGUAGES):
      raise ValueError(f"pairs={sorted(pairs or ())}: expected some between {LANGUAGES}")
    super().__init__(num_candidates, examples_per_shard=examples_per_shard)
    self.num_candidates = dict(num_candidates)
    self.task = task
    self.seed = seed
    self.max_samples = max_samples
    self.augmentation = augmentation or AugmentationConfig()
    self.synthesizer = synthesizer
    self.pairs = None if pairs is None else frozenset(pairs)
    self.languages = tuple(language for language in LANGUAGES if language in languages)
    self.wording_split: Split = wording_split
    self.num_wordings = num_wordings
    self.num_distractors = num_distractors

  def num_input_examples(self, split: str) -> int:
    return self.num_candidates[split]

  def utterance(self, split: str, index: int) -> Utterance:
    """Candidate `index` of a split, a pure function of (source, split, index)."""
    rng = self._rng(split, index, "words")
    language = self.languages[index % len(self.languages)]
    sentence = self._sentence(split, index, language)
    transcript = sentence.text(language)
    target_language, instruction, target = language, "", transcript
    if self.task == "translate":
      others = [
        other for other in LANGUAGES if other != language and self._is_pair(language, other)
      ]
      target_language = others[index // len(self.languages) % len(others)]
      instruction = _choose(rng, self._wordings("translate", target_language))
      target = sentence.text(target_language)
    elif self.task == "question":
      instruction, target = _choose(rng, sentence.questions(language))
    elif self.task == "biasing":
      draws = Draws(self.seed, index, split, "names")
      names = name_list(sentence.names, self.num_distractors, draws, WORLD_SPLITS[split])
      instruction = with_names(_choose(rng, self._wordings("repeat")), names)
    elif self.task != "transcribe":
      instruction = _choose(rng, self._wordings(self.task))
      target = target_of(sentence, self.task, language)
    return Utterance(
      id=f"{self.task}-{split}-{index:06d}",
      task=self.task,
      language=language,
      target_language=target_language,
      transcript=transcript,
      instruction=instruction,
      target=target,
      voice=_choose(rng, voices.variants(split)),
      names="|".join(sentence.names),
    )

  def _sentence(self, split: str, index: int, language: str) -> WorldSentence:
    """Of biasing the first that has names, of all those that belong to the index."""
    world_split, step = WORLD_SPLITS[split], self.num_candidates[split]
    sentence = sample_sentence(self.seed, index, world_split, language)
    while self.task == "biasing" and not sentence.names:
      index += step
      sentence = sample_sentence(self.seed, index, world_split, language)
    return sentence

  def _is_pair(self, language: str, target_language: str) -> bool:
    return self.pairs is None or (language, target_language) in self.pairs

  def _wordings(self, task: str, target_language: str | None = None) -> tuple[str, ...]:
    return wordings(task, self.wording_split, target_language)[: self.num_wordings]

  def make_examples(self, split: str, start: int, stop: int) -> Iterator[Example]:
    synthesizer = self.synthesizer()
    for index in range(start, stop):
      utterance = self.utterance(split, index)
      rng = self._rng(split, index, "sound")
      samples, rate = synthesizer.synthesize(
        utterance.transcript,
        utterance.language,
        utterance.voice,
        int(rng.integers(2**31)),
        vary=split == "train",
      )
      audio = augment(samples, rate, rng, self.augmentation)
      if len(audio) > self.max_samples:
        self.dropped[f"audio longer than {self.max_samples} samples"] += 1
        continue
      texts = {name: text.encode() for name, text in dataclasses.asdict(utterance).items()}
      yield {"audio": audio.astype("<i2").tobytes(), **texts}

  def describe(self) -> dict:
    return {
      "kind": "mini speech",
      "seed": self.seed,
      "max_samples": self.max_samples,
      "augmentation": dataclasses.asdict(self.augmentation),
      "synthesizer": self.synthesizer.__name__,
      "varied_voices": ["train"],
      "probes": [
        dataclasses.asdict(self.utterance(split, index))
        for split, count in self.num_candidates.items()
        for index in range(min(count, NUM_PROBES))
      ],
    }

  def _rng(self, split: str, index: int, purpose: str) -> np.random.Generator:
    key = (
      self.seed,
      TASKS.index(self.task),
      sorted(WORLD_SPLITS).index(split),
      purpose == "sound",
      index,
    )
    return np.random.default_rng(key)


def _choose(rng: np.random.Generator, items):
  return items[rng.integers(len(items))]
