"""Answers instructions about audio files, or transcribes them: the logic of the `infer` mode.

Any sample rate, channel count and length; long files go through the model in chunks cut at pauses,
so nothing is dropped. The output file is moved into place when every line is written: a mistake or
a kill leaves what was there before.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from slm_jax.audio.files import SAMPLE_RATE, probe_audio, read_audio
from slm_jax.errors import UserError
from slm_jax.evaluation.ctc_transcriber import CtcTranscriber
from slm_jax.evaluation.generation import (
  GenerationSettings,
  Hypothesis,
  SpeechModel,
  hypothesise,
  padded_length,
  prompt_ids,
)
from slm_jax.evaluation.writer import finite, json_line

_Readable = tuple[np.ndarray, str]  # int16 samples [S], instruction
_OnSamples = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceRequest:
  """One instruction about one audio file; `source` is the JSONL file it was read from.

  `instruction` is None where a speech encoder alone transcribes.
  """

  audio: str
  instruction: str | None = None
  id: str | int | None = None
  source: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceSummary:
  """What a finished run did. `bad_audio` is the number of requests without a prediction."""

  requests: int
  bad_audio: int
  audio_seconds: float
  seconds: float


@dataclasses.dataclass
class _Read:
  """A request whose audio was tried: either `seconds` of audio or an `error`."""

  request: InferenceRequest
  duration: float = 0.0
  read_seconds: float = 0.0
  error: str | None = None


def requests_from_flags(
  audio: Sequence[str], instructions: Sequence[str]
) -> list[InferenceRequest]:
  """Every instruction for every file, file by file. Raises `UserError` if either is missing."""
  if not audio:
    raise UserError(
      "no audio to answer about; give --audio=FILE (repeatable) or a JSONL of requests"
    )
  if not instructions:
    raise UserError('no instruction; give --instruction="Transcribe the speech." (repeatable)')
  return [
    InferenceRequest(audio=file, instruction=_instruction(text, "--instruction"))
    for file in audio
    for text in instructions
  ]


def read_requests(
  path: str | os.PathLike[str], *, instructed: bool = True
) -> list[InferenceRequest]:
  """Reads JSON lines `{"audio": …, "instruction": …, "id"?: …}`; blank lines are passed over.

  `id` is a string or an integer and is handed through. There is no `instruction` unless
  `instructed`.

  A relative audio path is relative to the folder of the JSONL file, so that a folder of audio and
  its list can be moved together.

  Raises:
    UserError: naming path:line and field, for what cannot be read, is not UTF-8, not a JSON object,
      or lacks a field or has one that is unknown or of the wrong type.
  """
  path = pathlib.Path(path)
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(
      f"{str(path)!r} cannot be read: {error.strerror}; expected a JSONL file of requests"
    ) from error
  requests = [
    _parse_request(line, number, path, instructed)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    if line.strip()
  ]
  if not requests:
    example = '"audio": "a.wav"' + (', "instruction": "…"' if instructed else "")
    raise UserError(f"{path}: no request; expected lines {{{example}}}")
  return requests


def infer(
  model: SpeechModel,
  requests: Sequence[InferenceRequest],
  output_path: str | os.PathLike[str],
  settings: GenerationSettings | None = None,
  *,
  max_bad_audio: int = 0,
  show_progress: bool = True,
) -> InferenceSummary:
  """Answers every request and writes one JSON line each, in their order.

  A line: `{"inputs": {"audio", "instruction", "duration", "id"?}, "prediction", "score", "chunks":
  [{"start", "end", "text", "score"}], "timings": {"read", "generate", "real_time_factor"}}`, times
  in seconds. A request whose audio is bad, within `max_bad_audio`, has `"prediction": null` and an
  `"error"`, and is named on stderr.

  Raises:
    UserError: more than `max_bad_audio` requests with bad audio, or an output path that cannot be
      written or is one of the inputs. Nothing at `output_path` has changed then.
  """
  chosen = settings or GenerationSettings()

  def answer(readable: Iterator[_Readable], on_samples: _OnSamples) -> Iterator[Hypothesis]:
    instructions = {request.instruction or "" for request in requests}
    length = padded_length(len(prompt_ids(model.tokenizer, text)) for text in instructions)
    return hypothesise(model, readable, chosen, prompt_length=length, on_samples=on_samples)

  return _run(answer, requests, output_path, max_bad_audio, show_progress)


def transcribe(
  transcriber: CtcTranscriber,
  requests: Sequence[InferenceRequest],
  output_path: str | os.PathLike[str],
  batch_size: int,
  *,
  max_bad_audio: int = 0,
  show_progress: bool = True,
) -> InferenceSummary:
  """Writes what a speech encoder hears by itself: lines and errors as of `infer`.

  No line has an instruction. A score is a log-probability in nats, null where nothing was searched.
  """

  def answer(readable: Iterator[_Readable], on_samples: _OnSamples) -> Iterator[Hypothesis]:
    return transcriber.hypothesise((samples for samples, _ in readable), batch_size, on_samples)

  return _run(answer, requests, output_path, max_bad_audio, show_progress)


def _run(
  answer: Callable[[Iterator[_Readable], _OnSamples], Iterator[Hypothesis]],
  requests: Sequence[InferenceRequest],
  output_path: str | os.PathLike[str],
  max_bad_audio: int,
  show_progress: bool,
) -> InferenceSummary:
  """Reads the audio of all requests, has it answered, writes the lines."""
  if not requests:
    raise UserError("no request to answer; give --audio and --instruction or a JSONL of requests")
  output = _check_output(pathlib.Path(output_path), requests)
  budget = _Budget(max_bad_audio)
  # Headers first: a misspelt path in the last line should not cost the work on all lines before it.
  durations = {}
  for audio in dict.fromkeys(request.audio for request in requests):
    with contextlib.suppress(UserError):
      durations[audio] = probe_audio(audio).seconds
  budget.check_ahead([r for r in requests if r.audio not in durations])
  begin = time.perf_counter()
  pending: deque[_Read] = deque()
  total_seconds = sum(durations.get(request.audio, 0.0) for request in requests)
  partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
  audio_seconds = 0.0
  try:
    with open(partial, "w", encoding="utf-8") as file, _progress(show_progress) as bar:
      line = bar.add_task("infer", total=total_seconds)
      readable = _read_all(requests, pending, budget, bar)
      for hypothesis in answer(readable, lambda samples: bar.advance(line, samples / SAMPLE_RATE)):
        _write_bad(file, pending)
        read = pending.popleft()
        file.write(json_line(_line(read, hypothesis)))
        audio_seconds += read.duration
      _write_bad(file, pending)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, output)
  finally:
    partial.unlink(missing_ok=True)
  return InferenceSummary(
    requests=len(requests),
    bad_audio=budget.spent,
    audio_seconds=audio_seconds,
    seconds=time.perf_counter() - begin,
  )


class _Budget:
  """Counts requests with bad audio and ends the run beyond the allowance."""

  def __init__(self, allowed: int):
    if allowed < 0:
      raise UserError(f"--max_bad_audio={allowed}: expected 0 or more")
    self.allowed, self.spent = allowed, 0

  def check_ahead(self, suspects: Sequence[InferenceRequest]) -> None:
    """Raises the first suspect's error if all of them together exceed the allowance."""
    if len(suspects) > self.allowed:
      try:
        probe_audio(suspects[0].audio)
      except UserError as error:
        raise self._exceeded(error, len(suspects)) from error

  def spend(self, error: UserError, bar: Progress) -> None:
    self.spent += 1
    if self.spent > self.allowed:
      raise self._exceeded(error, self.spent) from error
    bar.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)

  def _exceeded(self, error: UserError, count: int) -> UserError:
    if count == 1:
      return UserError(f"{error}, or allow bad audio with --max_bad_audio=1")
    return UserError(
      f"{error}; {count} requests have bad audio, {self.allowed} allowed (--max_bad_audio)"
    )


def _read_all(
  requests: Sequence[InferenceRequest], pending: deque[_Read], budget: _Budget, bar: Progress
) -> Iterator[_Readable]:
  """Yields (samples, instruction or "") of readable requests; appends every request to `pending`."""
  last: tuple[str, np.ndarray] | None = None  # several instructions about one file: decoded once
  for request in requests:
    begin = time.perf_counter()
    try:
      samples = last[1] if last and last[0] == request.audio else read_audio(request.audio)
    except UserError as error:
      budget.spend(error, bar)
      pending.append(_Read(request, error=str(error)))
      continue
    last = (request.audio, samples)
    pending.append(
      _Read(request, len(samples) / SAMPLE_RATE, read_seconds=time.perf_counter() - begin)
    )
    yield samples, request.instruction or ""


def _write_bad(file: Any, pending: deque[_Read]) -> None:
  """Writes the lines of requests at the front whose audio was bad."""
  while pending and pending[0].error is not None:
    read = pending.popleft()
    inputs = _inputs(read) | {"duration": None}
    file.write(json_line({"inputs": inputs, "prediction": None, "error": read.error}))


def _line(read: _Read, hypothesis: Hypothesis) -> dict[str, Any]:
  return {
    "inputs": _inputs(read),
    "prediction": hypothesis.text,
    "score": finite(hypothesis.score),
    "chunks": [
      {
        "start": chunk.start / SAMPLE_RATE,
        "end": chunk.stop / SAMPLE_RATE,
        "text": chunk.text,
        "score": finite(chunk.score),
      }
      for chunk in hypothesis.chunks
    ],
    "timings": {
      "read": round(read.read_seconds, 6),
      "generate": round(hypothesis.seconds, 6),
      "real_time_factor": round((read.read_seconds + hypothesis.seconds) / read.duration, 6),
    },
  }


def _inputs(read: _Read) -> dict[str, Any]:
  inputs: dict[str, Any] = {} if read.request.id is None else {"id": read.request.id}
  inputs["audio"] = read.request.audio
  if read.request.instruction is not None:
    inputs["instruction"] = read.request.instruction
  return inputs | {"duration": read.duration}


def _parse_request(
  line: bytes, number: int, path: pathlib.Path, instructed: bool
) -> InferenceRequest:
  where = f"{path}:{number}"
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise UserError(
      f"{where}: not UTF-8 (byte {line[error.start]:#04x} at {error.start}); save the file as UTF-8"
    ) from error
  except (json.JSONDecodeError, RecursionError) as error:
    raise UserError(f"{where}: not JSON ({error}); expected one object a line") from error
  if not isinstance(record, dict):
    raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}")
  needed = ("audio", "instruction") if instructed else ("audio",)
  fields = {*needed, "id"}
  for name in sorted(set(record) - fields):
    raise UserError(f"{where}: unknown field {name!r}; known: {sorted(fields)}")
  for name in needed:
    if name not in record:
      raise UserError(f"{where}: field {name!r} is missing; add it to the line")
  for name, value in record.items():
    if not isinstance(value, str) and not (name == "id" and type(value) is int):
      raise UserError(f"{where}: field {name!r} is {json.dumps(value)[:40]}, expected a string")
  if not record["audio"]:
    raise UserError(f"{where}: field 'audio' is empty, expected a path")
  text = record.get("instruction")
  return InferenceRequest(
    audio=os.fspath(path.parent / record["audio"]),
    instruction=None if text is None else _instruction(text, f"{where}: field 'instruction'"),
    id=record.get("id"),
    source=os.fspath(path),
  )


def _instruction(text: str, where: str) -> str:
  if not text.strip():
    raise UserError(f"{where} is empty; say what to do with the speech")
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:  # half of a surrogate pair: no tokenizer and no file takes it
    raise UserError(f"{where} holds a lone surrogate at character {error.start}") from error
  return text


def _check_output(path: pathlib.Path, requests: Sequence[InferenceRequest]) -> pathlib.Path:
  if path.is_dir():
    raise UserError(
      f"output {str(path)!r} is a directory; name a file, such as {path / 'out.jsonl'}"
    )
  inputs = {r.audio for r in requests} | {r.source for r in requests if r.source is not None}
  if path.exists() and any(path.samefile(i) for i in inputs if os.path.exists(i)):
    raise UserError(f"output {str(path)!r} is one of the inputs; choose another output")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"output {str(path)!r}: cannot make its folder: {error.strerror}") from error
  if not os.access(path.parent, os.W_OK):
    raise UserError(f"output {str(path)!r}: its folder is not writable; choose another output")
  return path


def _progress(show: bool) -> Progress:
  """Audio seconds done, on stderr: stdout belongs to whoever pipes."""
  return Progress(
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.completed:.0f} of {task.total:.0f} s of audio"),
    TimeRemainingColumn(),
    console=Console(file=sys.stderr),
    disable=not show,
  )
