"""Scores of a pre-trained part on its own, and the model card that carries them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from slm_jax.evaluation import scores
from slm_jax.evaluation.ctc_transcriber import CtcTranscriber
from slm_jax.evaluation.generation import GenerationSettings, answer_texts
from slm_jax.evaluation.runner import SpeechExample
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.speech_encoder_model import SpeechEncoderModel


class TextExample(Protocol):
  """A text with an instruction and the exact answer."""

  @property
  def task(self) -> str: ...
  @property
  def sentence(self) -> str: ...
  @property
  def instruction(self) -> str: ...
  @property
  def target(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class _TextModel:
  language_model: LanguageModel
  max_samples: int = 0

  @property
  def tokenizer(self) -> Any:
    return self.language_model.tokenizer


def score_language_model(
  model: LanguageModel, examples: Sequence[TextExample], max_new_tokens: int
) -> dict[str, float]:
  """Percent of answers that are exact, by task."""
  requests = [(example.sentence, example.instruction) for example in examples]
  settings = GenerationSettings(batch_size=64, max_new_tokens=max_new_tokens)
  answers = list(answer_texts(_TextModel(model), requests, settings))  # pyright: ignore
  table = {}
  for task in sorted({example.task for example in examples}):
    rows = [i for i, example in enumerate(examples) if example.task == task]
    targets, texts = [examples[i].target for i in rows], [answers[i] for i in rows]
    exact = scores.score("exact", targets, texts, normaliser="none")
    table[f"exact match, {task} ({len(rows)})"] = exact.value
  return table


def score_speech_encoder(
  encoder: SpeechEncoderModel, examples: Iterable[SpeechExample], max_samples: int
) -> dict[str, float]:
  """Character and word error rate of greedy CTC, percent, all together and by language."""
  examples = list(examples)
  transcriber = CtcTranscriber(encoder, max_samples)
  heard = [one.text for one in transcriber.hypothesise((e.audio for e in examples), 32)]
  targets = [example.target for example in examples]
  languages = [example.language for example in examples]
  table = {}
  for metric in ("cer", "wer"):
    score = scores.score(metric, targets, heard, languages)
    table[f"{score.metric.upper()}, all ({len(examples)})"] = score.value
    table |= {f"{score.metric.upper()}, {k}": v for k, v in sorted(score.per_language.items())}
  return table


def write_card(
  path: Path, *, title: str, facts: Mapping[str, str], table: Mapping[str, float]
) -> None:
  """Writes a model card: what it is, how it was made, what it scores."""
  lines = [f"# {title}", ""]
  lines += [f"- **{name}**: {value}" for name, value in facts.items()]
  if table:
    lines += ["", "| score | percent |", "|---|---|"]
  lines += [f"| {name} | {value:.1f} |" for name, value in table.items()]
  path.write_text("\n".join(lines) + "\n")
