"""What clients ask, read from forms and JSON into one shape; what is not understood is refused, not ignored."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from slm_jax.serving.errors import BadRequest
from slm_jax.serving.uploads import decode_audio, decode_base64

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_FORM_FIELDS = {"file", "model", "language", "prompt", "response_format", "temperature", "stream"}
_FORM_FIELDS |= {"timestamp_granularities[]"}
_CHAT_FIELDS = {
  "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stream", "stream_options", "n",
  "modalities", "user", "store", "metadata",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioRequest:
  """One recording and what is asked about it.

  Attributes:
    model: name of an adapter.
    audio: int16 [S] at 16 kHz.
    instruction: None is the adapter's own for this endpoint.
    response_format: one of `RESPONSE_FORMATS`.
    language: as the client named it.
    max_tokens: None is the server's limit.
  """

  model: str
  audio: np.ndarray
  instruction: str | None = None
  response_format: str = "json"
  language: str | None = None
  temperature: float = 0.0
  seed: int = 0
  max_tokens: int | None = None
  stream: bool = False
  include_usage: bool = False


def read_form(form: Mapping[str, Any], *, max_seconds: float) -> AudioRequest:
  """A multipart form of /v1/audio/…; decodes the file. Raises BadRequest."""
  _check_fields(form, _FORM_FIELDS)
  for name in form.keys() - {"file"}:
    if not isinstance(form[name], str):
      raise BadRequest(f"{name} is a file: expected a text", param=name)
  file: Any = form.get("file")
  if not hasattr(file, "filename"):
    raise BadRequest("file is missing: expected an audio file as multipart/form-data", param="file")
  response_format = form.get("response_format") or "json"
  if response_format not in RESPONSE_FORMATS:
    raise BadRequest(
      f"response_format {response_format!r}: expected one of {', '.join(RESPONSE_FORMATS)}",
      param="response_format",
    )
  if form.get("prompt"):
    raise BadRequest(
      "prompt is not supported here: ask with an instruction at /v1/chat/completions",
      param="prompt",
    )
  if form.get("timestamp_granularities[]", "segment") != "segment":
    raise BadRequest("only segments have times", param="timestamp_granularities")
  return AudioRequest(
    model=_text(form, "model"),
    audio=decode_audio(file.file, file.filename or "", max_seconds=max_seconds),
    response_format=response_format,
    language=form.get("language") or None,
    temperature=_number(form, "temperature", 0.0, low=0.0, high=2.0),
    stream=_flag(form, "stream"),
  )


def read_chat(body: bytes, *, max_seconds: float) -> AudioRequest:
  """The JSON of /v1/chat/completions; decodes its audio. Raises BadRequest."""
  try:
    record = json.loads(body)
    # A half of a pair of surrogates alone is no character.
    json.dumps(record, ensure_ascii=False).encode()
  except (ValueError, RecursionError) as error:
    raise BadRequest(f"the body is not JSON: {error}") from error
  if not isinstance(record, dict):
    raise BadRequest("the body is no JSON object")
  _check_fields(record, _CHAT_FIELDS)
  if record.get("n", 1) not in (1, None):
    raise BadRequest("n: one choice is what this server gives", param="n")
  if record.get("modalities") not in (None, ["text"]):
    raise BadRequest("modalities: this server answers in text", param="modalities")
  texts, audio = _messages(record.get("messages"))
  limits = [record.get(name) for name in ("max_completion_tokens", "max_tokens")]
  limit = next((value for value in limits if value is not None), None)
  if limit is not None and (type(limit) is not int or limit < 1):
    raise BadRequest(f"max_completion_tokens {limit!r}: expected 1 or more", param="max_tokens")
  seed = record.get("seed") or 0
  if type(seed) is not int:
    raise BadRequest(f"seed {seed!r}: expected an integer", param="seed")
  options = record.get("stream_options") or {}
  data, name = audio
  return AudioRequest(
    model=_text(record, "model"),
    audio=decode_audio(data, name, max_seconds=max_seconds),
    instruction="\n".join(texts) or None,
    temperature=_number(record, "temperature", 0.0, low=0.0, high=2.0),
    seed=seed,
    max_tokens=limit,
    stream=_flag(record, "stream"),
    include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
  )


def _messages(messages: Any) -> tuple[list[str], tuple[bytes, str]]:
  """(texts, (bytes of the audio, a file name that tells its format))."""
  if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
    raise BadRequest("messages: expected a list of objects", param="messages")
  roles = [message.get("role") for message in messages]
  if roles.count("user") != 1 or any(r not in ("user", "system", "developer") for r in roles):
    raise BadRequest(
      "messages: expected one user message, and a system message at most; this model has no memory "
      "of a conversation",
      param="messages",
    )
  texts: list[str] = []
  found: list[tuple[bytes, str]] = []
  for message in messages:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
      raise BadRequest("messages: content is neither a text nor a list of parts", param="messages")
    for part in parts:
      if part.get("type") == "text" and isinstance(part.get("text"), str):
        texts.append(part["text"])
      elif part.get("type") == "input_audio":
        found.append(_audio_part(part.get("input_audio")))
      else:
        raise BadRequest(
          f"messages: a part of type {part.get('type')!r}; expected text or input_audio",
          param="messages",
        )
  if len(found) != 1:
    raise BadRequest(
      f"messages have {len(found)} input_audio parts, expected one", param="messages"
    )
  return [text for text in texts if text.strip()], found[0]


def _audio_part(part: Any) -> tuple[bytes, str]:
  if not isinstance(part, dict) or not isinstance(part.get("data"), str):
    raise BadRequest("input_audio: expected an object with data and format", param="messages")
  return decode_base64(part["data"]), f"audio.{part.get('format', '')}"


def _check_fields(given: Mapping[str, Any], known: set[str]) -> None:
  if unknown := sorted(set(given) - known):
    raise BadRequest(
      f"{unknown[0]} is not supported; known are {', '.join(sorted(known))}", param=unknown[0]
    )


def _text(given: Mapping[str, Any], name: str) -> str:
  value = given.get(name)
  if not isinstance(value, str) or not value:
    raise BadRequest(f"{name} is missing: expected a text", param=name)
  return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
  value = given.get(name)
  if value in (None, "", False, True):
    return bool(value)
  if str(value).lower() not in ("true", "1", "false", "0"):
    raise BadRequest(f"{name} {str(value)[:50]!r}: expected true or false", param=name)
  return str(value).lower() in ("true", "1")


def _number(
  given: Mapping[str, Any], name: str, default: float, *, low: float, high: float
) -> float:
  value = given.get(name)
  if value is None or value == "":
    return default
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    number = float("nan")
  if not low <= number <= high:
    raise BadRequest(
      f"{name} {value!r:.50}: expected a number from {low:g} to {high:g}", param=name
    )
  return number
