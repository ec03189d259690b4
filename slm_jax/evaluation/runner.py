"""Evaluates a model on held-out speech, beside its own CTC head, its text oracle and wrong audio.

Six systems answer the same examples:
  slm       speech and instruction through the adapter.
  ctc       the frozen speech encoder's greedy CTC text of the same audio (where the words are asked for, and
            the encoder has a CTC head and its tokenizer).
  cascade   the frozen LM on that CTC text and the instruction: what there is without an adapter.
  oracle    the frozen LM on the correct transcript and the instruction: what perfect hearing gives.
  shuffled  the SLM on another example's audio. A model that listens collapses here; one that
            guesses from the instruction, or has learnt the targets' distribution, does not.
  silenced  the SLM on digital silence of the same length: what it says when nothing is said.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.evaluation import task_scores
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.generation import (
  GenerationSettings,
  SpeechModel,
  padded_length,
  prompt_ids,
)
from slm_jax.evaluation.kept_texts import KeptTexts
from slm_jax.evaluation.listening import Listening, listening
from slm_jax.evaluation.provenance import examples_digest
from slm_jax.evaluation.scores import Score
from slm_jax.evaluation.system_answers import SpeechExample, SystemAnswers
from slm_jax.evaluation.task_scores import KIND_METRICS, TASK_KINDS

SYSTEMS = ("slm", "ctc", "cascade", "oracle", "shuffled", "silenced")


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
  names: tuple[str, ...] = ()  # biasing words


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
  """One task's scores and texts.

  Attributes:
    kind: key of `KIND_METRICS`.
    scores: system → metric → Score. "ctc" only where the words are asked for; "shuffled" is absent when the
      examples offer no other audio (one example, or one sentence spoken more than half the time).
    rates: system → rate of `behaviour` → Score.
    agreement: metric → Score of the SLM's texts with the oracle's as references; empty without an oracle.
    listening: the verdict; None where there is no shuffled audio.
    seconds: system → wall time, compilation included, of what was not kept from an earlier attempt.
    first_batch_seconds: the SLM's first batch, which holds its compilation.
  """

  task: str
  kind: str
  scores: Mapping[str, Mapping[str, Score]]
  predictions: tuple[Prediction, ...]
  audio_seconds: float
  seconds: Mapping[str, float]
  first_batch_seconds: float
  rates: Mapping[str, Mapping[str, Score]] = dataclasses.field(default_factory=dict)
  agreement: Mapping[str, Score] = dataclasses.field(default_factory=dict)
  listening: Listening | None = None


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
  systems: Sequence[str] = SYSTEMS,
  normaliser: str = "basic-1",
  resampling: Resampling | None = None,
  shuffle_seed: int = 0,
  kept: KeptTexts | None = None,
  on_progress: Callable[[str, str, int, int], None] | None = None,
) -> EvaluationResult:
  """Runs every system on every task of `examples` and scores them.

  Args:
    model: see `SpeechModel`.
    examples: of any tasks, mixed or not; examples of one task are scored together.
    settings: batch size and decoding.
    kinds: task → key of `KIND_METRICS`, over `TASK_KINDS`.
    systems: of `SYSTEMS`, "slm" among them.
    normaliser: key of `normalisers.NORMALISERS`.
    resampling: of the scores' intervals; None: scores have none.
    shuffle_seed: of the wrong audio.
    kept: texts of an earlier attempt, which are not asked for again.
    on_progress: called with (task, system, done, total) after each text.

  Raises:
    ValueError: no examples, or a kind or system that is unknown.
  """
  if not examples:
    raise ValueError("no examples to evaluate")
  check_systems(systems)
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
  tasks = []
  for task, rows in by_task.items():
    kind = kinds.get(task, "answer")
    answers = SystemAnswers(
      model, task, kind, rows, settings, prompt_length, on_progress or (lambda *_: None)
    )
    if kept is not None:
      facts = {
        "examples": examples_digest(rows),
        "settings": dataclasses.asdict(settings),
        "max_samples": model.max_samples,
        "shuffle_seed": shuffle_seed,
      }
      answers.keep(kept, facts)
    others = derangement([e.transcript for e in rows], shuffle_seed)
    for system in SYSTEMS:
      if system in systems:
        answers.add(system, others)
    tasks.append(_evaluated(answers, others, normaliser, resampling))
  return EvaluationResult(tasks=tuple(tasks), settings=settings)


def check_systems(systems: Sequence[str]) -> None:
  """Raises ValueError unless all are of `SYSTEMS` and "slm" is one."""
  if unknown := sorted(set(systems) - set(SYSTEMS)):
    raise ValueError(f"unknown systems {unknown}; known: {SYSTEMS}")
  if "slm" not in systems:
    raise ValueError(f"systems={tuple(systems)} must name slm, which the others are compared with")


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


def _evaluated(
  answers: SystemAnswers,
  others: Sequence[int] | None,
  normaliser: str,
  resampling: Resampling | None,
) -> TaskEvaluation:
  examples = answers.examples
  predictions = tuple(
    Prediction(
      id=e.id,
      instruction=e.instruction,
      transcript=e.transcript,
      target=e.target,
      language=e.language,
      target_language=e.target_language,
      voice=e.voice,
      seconds=len(e.audio) / SAMPLE_RATE,
      score=answers.own_scores[i],
      texts={system: texts[i] for system, texts in answers.texts.items()},
      shuffled_with=None
      if others is None or "shuffled" not in answers.texts
      else examples[others[i]].id,
      names=tuple(getattr(e, "names", ())),
    )
    for i, e in enumerate(examples)
  )
  return TaskEvaluation(
    task=answers.task,
    kind=answers.kind,
    predictions=predictions,
    audio_seconds=sum(p.seconds for p in predictions),
    seconds=answers.seconds,
    first_batch_seconds=answers.first_batch_seconds,
    **scored(answers.kind, predictions, normaliser, resampling),
  )


def scored(
  kind: str,
  predictions: Sequence[Prediction],
  normaliser: str,
  resampling: Resampling | None,
) -> dict[str, Any]:
  """What texts that are there are worth: a `TaskEvaluation`'s `scores`, `rates`, `agreement` and `listening`."""
  texts = {
    system: [prediction.texts[system] for prediction in predictions]
    for system in predictions[0].texts
  }
  return {
    "scores": {
      system: task_scores.score_system(
        kind, predictions, answers, normaliser=normaliser, resampling=resampling
      )
      for system, answers in texts.items()
    },
    "rates": {
      system: task_scores.rate_system(kind, system, predictions, answers, resampling)
      for system, answers in texts.items()
      if system != "ctc"
    },
    "agreement": task_scores.agreement(
      texts["slm"],
      texts["oracle"],
      task_scores.target_languages(predictions),
      normaliser=normaliser,
      resampling=resampling,
    )
    if "oracle" in texts
    else {},
    "listening": listening(
      kind,
      predictions,
      texts["slm"],
      texts["shuffled"],
      normaliser=normaliser,
      resampling=resampling or Resampling(),
    )
    if "shuffled" in texts
    else None,
  }
