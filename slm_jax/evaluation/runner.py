"""Evaluates a model on held-out speech, beside its own CTC head, its text oracle and wrong audio.

Four systems answer the same examples:
  slm       speech and instruction through the adapter.
  ctc       the frozen speech encoder's greedy CTC text of the same audio (transcription only, and
            where it has a CTC head and its tokenizer).
  oracle    the frozen LM on the correct transcript and the instruction: what perfect hearing gives.
  shuffled  the SLM on another example's audio. A model that listens collapses here; one that
            guesses from the instruction, or has learnt the targets' distribution, does not.
"""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.evaluation import scores
from slm_jax.evaluation.generation import (
  GenerationSettings,
  Hypothesis,
  SpeechModel,
  answer_texts,
  hypothesise,
  padded_length,
  prompt_ids,
  transcribe_with_ctc,
)
from slm_jax.evaluation.scores import Score

SYSTEMS = ("slm", "ctc", "oracle", "shuffled")


class SpeechExample(Protocol):
  """What an example must offer; any object with these attributes serves."""

  @property
  def id(self) -> str: ...
  @property
  def task(self) -> str: ...
  @property
  def audio(self) -> np.ndarray: ...  # int16 [S] at 16 kHz
  @property
  def transcript(self) -> str: ...
  @property
  def instruction(self) -> str: ...
  @property
  def target(self) -> str: ...
  @property
  def language(self) -> str: ...
  @property
  def target_language(self) -> str: ...
  @property
  def voice(self) -> str: ...


# Which scores a task gets. A task of another name is scored as "answer", by exact match.
TASK_KINDS: Mapping[str, str] = {
  "repeat": "transcription",
  "asr": "transcription",
  "translate": "translation",
  "ast": "translation",
}
KIND_METRICS: Mapping[str, tuple[str, ...]] = {
  "transcription": ("wer", "cer", "exact"),
  "translation": ("bleu", "chrf", "exact"),
  "answer": ("exact",),
}
_METRICS: Mapping[str, Callable[..., Score]] = {
  "wer": scores.wer,
  "cer": scores.cer,
  "bleu": scores.bleu,
  "chrf": scores.chrf,
  "exact": scores.exact_match,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """One example and every system's text for it; `shuffled_with` is the id whose audio was heard."""

  id: str
  instruction: str
  transcript: str
  target: str
  language: str
  target_language: str
  voice: str
  seconds: float  # of audio
  score: float  # the SLM's own, NaN where it gives none
  texts: Mapping[str, str]
  shuffled_with: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
  """One task's scores and texts.

  Attributes:
    kind: key of `KIND_METRICS`.
    scores: system → metric → Score. "ctc" only for transcription; "shuffled" is absent when the
      examples offer no other audio (one example, or one sentence spoken more than half the time).
    seconds: system → wall time, compilation included.
    first_batch_seconds: the SLM's first batch, which holds its compilation.
  """

  task: str
  kind: str
  scores: Mapping[str, Mapping[str, Score]]
  predictions: tuple[Prediction, ...]
  audio_seconds: float
  seconds: Mapping[str, float]
  first_batch_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
  """Every task's evaluation, in the order in which tasks first appear."""

  tasks: tuple[TaskEvaluation, ...]
  settings: GenerationSettings


def evaluate(
  model: SpeechModel,
  examples: Sequence[SpeechExample],
  settings: GenerationSettings | None = None,
  *,
  kinds: Mapping[str, str] | None = None,
  shuffle_seed: int = 0,
  on_progress: Callable[[str, str, int, int], None] | None = None,
) -> EvaluationResult:
  """Runs every system on every task of `examples` and scores them.

  Args:
    model: see `SpeechModel`.
    examples: of any tasks, mixed or not; examples of one task are scored together.
    settings: batch size and decoding.
    kinds: task → key of `KIND_METRICS`, over `TASK_KINDS`.
    shuffle_seed: of the wrong audio.
    on_progress: called with (task, system, done, total) after each text.

  Raises:
    ValueError: no examples, or a kind that is unknown.
  """
  if not examples:
    raise ValueError("no examples to evaluate")
  settings = settings or GenerationSettings()
  kinds = {**TASK_KINDS, **(kinds or {})}
  unknown = sorted(set(kinds.values()) - set(KIND_METRICS))
  if unknown:
    raise ValueError(f"unknown kinds {unknown}; known: {sorted(KIND_METRICS)}")
  # One prompt length for all tasks, so that all of them share one compiled function.
  prompt_length = padded_length(
    len(prompt_ids(model.tokenizer, text)) for text in {example.instruction for example in examples}
  )
  by_task: dict[str, list[SpeechExample]] = {}
  for example in examples:
    by_task.setdefault(example.task, []).append(example)
  return EvaluationResult(
    tasks=tuple(
      _evaluate_task(
        model,
        task,
        kinds.get(task, "answer"),
        rows,
        settings,
        prompt_length,
        shuffle_seed,
        on_progress or (lambda *_: None),
      )
      for task, rows in by_task.items()
    ),
    settings=settings,
  )


def derangement(keys: Sequence[Hashable], seed: int) -> list[int] | None:
  """A permutation in which no position keeps its key, so neither its own index nor an equal key.

  Groups of equal keys are put in random order and everything moves on by the size of the largest
  group. Returns None where that cannot be: fewer than two items, or one key held by more than
  half of them.
  """
  groups: dict[Hashable, list[int]] = {}
  for i, key in enumerate(keys):
    groups.setdefault(key, []).append(i)
  step = max((len(group) for group in groups.values()), default=0)
  if len(keys) < 2 or 2 * step > len(keys):
    return None
  rng = np.random.default_rng(seed)
  ordered = list(groups.values())
  order = [i for g in rng.permutation(len(ordered)) for i in rng.permutation(ordered[g]).tolist()]
  result = [0] * len(keys)
  for position, i in enumerate(order):
    result[i] = order[(position + step) % len(order)]
  return result


def _evaluate_task(
  model: SpeechModel,
  task: str,
  kind: str,
  examples: Sequence[SpeechExample],
  settings: GenerationSettings,
  prompt_length: int,
  shuffle_seed: int,
  on_progress: Callable[[str, str, int, int], None],
) -> TaskEvaluation:
  texts: dict[str, list[str]] = {}
  seconds: dict[str, float] = {}
  waited: dict[str, float] = {}  # until the first text
  own_scores: list[float] = []

  def collect(system: str, answers: Iterable[str]) -> None:
    begin, texts[system] = time.perf_counter(), []
    for text in answers:
      waited.setdefault(system, time.perf_counter() - begin)
      texts[system].append(text)
      on_progress(task, system, len(texts[system]), len(examples))
    seconds[system] = time.perf_counter() - begin

  def listen(sources: Sequence[SpeechExample]) -> Iterator[Hypothesis]:
    requests = (
      (source.audio, example.instruction) for source, example in zip(sources, examples, strict=True)
    )
    return hypothesise(model, requests, settings, prompt_length=prompt_length)

  def listen_and_score() -> Iterator[str]:
    for hypothesis in listen(examples):
      own_scores.append(hypothesis.score)
      yield hypothesis.text

  collect("slm", listen_and_score())
  if kind == "transcription" and model.has_ctc:
    heard = transcribe_with_ctc(model, (e.audio for e in examples), settings.batch_size)
    collect("ctc", (hypothesis.text for hypothesis in heard))
  collect(
    "oracle", answer_texts(model, [(e.transcript, e.instruction) for e in examples], settings)
  )
  others = derangement([e.transcript for e in examples], shuffle_seed)
  if others is not None:
    collect("shuffled", (h.text for h in listen([examples[i] for i in others])))
  return TaskEvaluation(
    task=task,
    kind=kind,
    scores={system: _score(kind, examples, answers) for system, answers in texts.items()},
    predictions=tuple(
      Prediction(
        id=e.id,
        instruction=e.instruction,
        transcript=e.transcript,
        target=e.target,
        language=e.language,
        target_language=e.target_language,
        voice=e.voice,
        seconds=len(e.audio) / SAMPLE_RATE,
        score=own_scores[i],
        texts={system: answers[i] for system, answers in texts.items()},
        shuffled_with=None if others is None else examples[others[i]].id,
      )
      for i, e in enumerate(examples)
    ),
    audio_seconds=sum(len(e.audio) for e in examples) / SAMPLE_RATE,
    seconds=seconds,
    first_batch_seconds=waited["slm"],
  )


def _score(
  kind: str, examples: Sequence[SpeechExample], answers: Sequence[str]
) -> dict[str, Score]:
  """Every metric of the kind, per language of the target (the language translated into)."""
  targets = [example.target for example in examples]
  languages = [example.target_language or example.language for example in examples]
  return {metric: _METRICS[metric](targets, answers, languages) for metric in KIND_METRICS[kind]}
