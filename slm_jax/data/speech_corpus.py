"""The mini world's speech: sentences in many synthetic voices, with instructions and answers."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from slm_jax.data import voices
from slm_jax.data.augmentation import AugmentationConfig, augment
from slm_jax.data.example_source import Example, ExampleSource
from slm_jax.data.mini_world.instructions import wordings
from slm_jax.data.mini_world.lexicon import LANGUAGES
from slm_jax.data.mini_world.world import sample_sentence
from slm_jax.data.speech_synthesis import EspeakSynthesizer, SpeechSynthesizer
from slm_jax.data.text_corpus import NUM_PROBES, WORLD_SPLITS

TASKS = ("transcribe", "repeat", "translate", "question")
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


class MiniSpeechSource(ExampleSource):
  """Spoken sentences of the mini world for one task.

  * transcribe: no instruction, the target is the sentence (what CTC learns);
  * repeat: an instruction to say the sentence again;
  * translate: into each other language equally often;
  * question: the instruction is a question about the sentence.

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
    augmentation: AugmentationConfig | None = None,
    synthesizer: Callable[[], SpeechSynthesizer] = EspeakSynthesizer,
  ):
    """Args beyond the attributes:

    num_candidates: split ("train", "validation") → number of utterances before any is dropped.
    synthesizer: called in the process that makes the examples.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
      raise ValueError(f"task={task!r} is not one of {TASKS}")
    super().__init__(num_candidates, examples_per_shard=examples_per_shard)
    self.num_candidates = dict(num_candidates)
    self.task = task
    self.seed = seed
    self.max_samples = max_samples
    self.augmentation = augmentation or AugmentationConfig()
    self.synthesizer = synthesizer

  def num_input_examples(self, split: str) -> int:
    return self.num_candidates[split]

  def utterance(self, split: str, index: int) -> Utterance:
    """Candidate `index` of a split, a pure function of (source, split, index)."""
    rng = self._rng(split, index, "words")
    language = LANGUAGES[index % len(LANGUAGES)]
    sentence = sample_sentence(self.seed, index, WORLD_SPLITS[split], language)
    transcript = sentence.text(language)
    target_language, instruction, target = language, "", transcript
    if self.task == "repeat":
      instruction = _choose(rng, wordings("repeat", "train"))
    elif self.task == "translate":
      others = [other for other in LANGUAGES if other != language]
      target_language = others[index // len(LANGUAGES) % len(others)]
      instruction = _choose(rng, wordings("translate", "train", target_language))
      target = sentence.text(target_language)
    elif self.task == "question":
      instruction, target = _choose(rng, sentence.questions(language))
    return Utterance(
      id=f"{self.task}-{split}-{index:06d}",
      task=self.task,
      language=language,
      target_language=target_language,
      transcript=transcript,
      instruction=instruction,
      target=target,
      voice=_choose(rng, voices.variants(split)),
    )

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
