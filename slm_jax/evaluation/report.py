"""One HTML page about a run: summary, findings, loss curve, scores, samples and demos.

The page is self-contained (style, curve and audio inside), so it opens offline and can be mailed.
All text from data or models is escaped.
"""

import base64
import dataclasses
import difflib
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import soundfile

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.evaluation.html_page import write_page
from slm_jax.evaluation.loss_curve import loss_curve_svg
from slm_jax.evaluation.normalisers import normalise_basic
from slm_jax.evaluation.runner import Prediction, TaskEvaluation
from slm_jax.evaluation.score_names import SYSTEM_NAMES
from slm_jax.evaluation.score_sections import findings, tables

_AUDIO_BUDGET = 4_000_000  # characters of base64, to keep the page below 5 MB
_MAX_PLAYED_SECONDS = 600  # longer audio exceeds the budget even as MP3: not worth encoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
  """The run in numbers.

  Attributes:
    title: names the run.
    trained_parameters: of the adapter; its share of all is worked out.
    frozen_parameters: of speech encoder and LM.
    steps: training steps done.
    wall_seconds: of training and evaluation.
    memory_bytes: what the compiler says one train step needs per device; None if it does not say.
    details: further label → value pairs, shown as they are.
  """

  title: str
  trained_parameters: int
  frozen_parameters: int
  steps: int
  wall_seconds: float
  memory_bytes: int | None = None
  details: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSample:
  """One evaluated example with its audio, int16 `[S]` at 16 kHz. `texts` maps system → text."""

  task: str
  audio: np.ndarray
  language: str
  target_language: str
  voice: str
  instruction: str
  reference: str
  texts: Mapping[str, str]

  @classmethod
  def of(cls, task: str, prediction: Prediction, audio: np.ndarray) -> "ReportSample":
    """From an evaluation's prediction and the example's audio."""
    return cls(
      task=task,
      audio=audio,
      language=prediction.language,
      target_language=prediction.target_language,
      voice=prediction.voice,
      instruction=prediction.instruction,
      reference=prediction.target,
      texts=prediction.texts,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportDemo:
  """One answer of the `infer` mode; `audio` int16 `[S]` at 16 kHz or None to show no player."""

  audio_name: str
  instruction: str
  prediction: str
  audio: np.ndarray | None = None


def write_report(
  path: str | os.PathLike[str],
  summary: RunSummary,
  train_log: Sequence[Mapping[str, Any]],
  evaluations: Sequence[TaskEvaluation],
  samples: Sequence[ReportSample],
  demos: Sequence[ReportDemo],
) -> None:
  """Writes the page, moved into place when complete.

  `train_log` holds the lines of train.jsonl ("step", "loss"). Audio is embedded as FLAC, as MP3 if
  that is too much for one page, and what still does not fit is replaced by a note that says so.
  """
  players = _players([s.audio for s in samples] + [d.audio for d in demos])
  parts = [
    _header(summary, train_log),
    findings(evaluations),
    _demos(demos, players[len(samples) :]),
    tables(evaluations),
    _curve(train_log),
    _samples(samples, players[: len(samples)]),
  ]
  write_page(path, summary.title, parts)


def _header(summary: RunSummary, train_log: Sequence[Mapping[str, Any]]) -> str:
  total = summary.trained_parameters + summary.frozen_parameters
  share = 100 * summary.trained_parameters / total if total else 0.0
  stats = {
    "Adapter parameters (trained)": _count(summary.trained_parameters),
    "Adapter's share of all": f"{share:.2f} %",
    "Frozen parameters": _count(summary.frozen_parameters),
    "Training steps": f"{summary.steps:,}",
    "Wall time": _duration(summary.wall_seconds),
  }
  if summary.memory_bytes is not None:
    stats["Compiler's memory per step"] = f"{summary.memory_bytes / 2**20:,.0f} MiB"
  if train_log and "loss" in train_log[-1]:
    stats["Last training loss"] = f"{train_log[-1]['loss']:.4g}"
  stats.update(summary.details)
  cards = "".join(
    f'<div class="card"><div class="small soft">{escape(label)}</div>'
    f'<div class="value">{escape(value)}</div></div>'
    for label, value in stats.items()
  )
  return (
    f'<header><div class="eyebrow">slm_jax run report</div><h1>{escape(summary.title)}</h1>'
    '<p class="soft">A trained adapter between a frozen speech encoder and a frozen language'
    f' model.</p></header>\n<section class="stats">{cards}</section>\n'
  )


def _curve(train_log: Sequence[Mapping[str, Any]]) -> str:
  svg = loss_curve_svg(train_log)
  if not svg:
    return ""
  return f'<h2>Training loss</h2>\n<section class="card">{svg}</section>\n'


def _samples(samples: Sequence[ReportSample], players: Sequence[str]) -> str:
  if not samples:
    return ""
  cards = "".join(map(_sample, samples, players))
  return (
    "<h2>Held-out samples</h2>\n"
    '<p class="soft">Words that differ from the reference are marked.</p>'
    f'<section class="samples">{cards}</section>\n'
  )


def _sample(sample: ReportSample, player: str) -> str:
  hypothesis = sample.texts["slm"]
  same = normalise_basic(hypothesis) == normalise_basic(sample.reference)
  direction = sample.language
  if sample.target_language and sample.target_language != sample.language:
    direction = f"{sample.language} → {sample.target_language}"
  chips = "".join(
    f'<span class="badge chip">{escape(text)}</span>'
    for text in (sample.task, direction, sample.voice)
    if text
  )
  verdict = "correct" if same else "differs"
  others = "".join(
    f"<dt>{SYSTEM_NAMES[system]}</dt><dd>{escape(text) or '(empty)'}</dd>"
    for system, text in sample.texts.items()
    if system != "slm"
  )
  details = (
    f"<details><summary>Other systems</summary><dl>{others}</dl></details>" if others else ""
  )
  return (
    f'<article class="card"><div class="chips">{chips}'
    f'<span class="badge {"good" if same else "bad"}">{verdict}</span></div>{player}<dl>'
    f"<dt>Instruction</dt><dd>{escape(sample.instruction)}</dd>"
    f"<dt>Reference</dt><dd>{escape(sample.reference)}</dd>"
    f"<dt>SLM</dt><dd>{_marked(sample.reference, hypothesis)}</dd></dl>{details}</article>\n"
  )


def _marked(reference: str, hypothesis: str) -> str:
  """The hypothesis, escaped, with the words that are not in the reference's order marked."""
  words = hypothesis.split()
  if not words:
    return "<mark>(empty)</mark>"
  matcher = difflib.SequenceMatcher(
    None,
    [normalise_basic(word) for word in reference.split()],
    [normalise_basic(word) for word in words],
    autojunk=False,
  )
  pieces = []
  for kind, _, _, start, stop in matcher.get_opcodes():
    text = escape(" ".join(words[start:stop]))
    if text:
      pieces.append(text if kind == "equal" else f"<mark>{text}</mark>")
  return " ".join(pieces)


def _demos(demos: Sequence[ReportDemo], players: Sequence[str]) -> str:
  if not demos:
    return ""
  cards = "".join(
    f'<article class="card"><span class="small soft">{escape(demo.audio_name)}</span>{player}<dl>'
    f"<dt>Instruction</dt><dd>{escape(demo.instruction)}</dd><dt>Answer</dt>"
    f'<dd class="answer">{escape(demo.prediction) or "(empty)"}</dd></dl></article>\n'
    for demo, player in zip(demos, players, strict=True)
  )
  return (
    f'<h2>One recording, several instructions</h2>\n<section class="samples">{cards}</section>\n'
  )


def _players(recordings: Sequence[np.ndarray | None]) -> list[str]:
  """An audio element for each recording, "" for None, within the page's budget."""
  encoded = [_encode(audio, "FLAC") for audio in recordings]
  mime = "audio/flac"
  if sum(map(len, encoded)) > _AUDIO_BUDGET:
    encoded, mime = [_encode(audio, "MP3") for audio in recordings], "audio/mpeg"
  left, players = _AUDIO_BUDGET, []
  for audio, data in zip(recordings, encoded, strict=True):
    if audio is None:
      players.append("")
    elif not data or len(data) > left:
      seconds = len(audio) / SAMPLE_RATE
      players.append(
        f'<p class="small soft">{seconds:.1f} s of audio left out to keep the page small.</p>'
      )
    else:
      left -= len(data)
      players.append(f'<audio controls preload="metadata" src="data:{mime};base64,{data}"></audio>')
  return players


def _encode(audio: np.ndarray | None, container: str) -> str:
  if audio is None or len(audio) > _MAX_PLAYED_SECONDS * SAMPLE_RATE:
    return ""
  file = io.BytesIO()
  soundfile.write(file, audio, SAMPLE_RATE, format=container)
  return base64.b64encode(file.getvalue()).decode("ascii")


def _count(number: int) -> str:
  for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
    if number >= size:
      return f"{number / size:.2f} {unit}"
  return str(number)


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes:02d} min"
  return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
