"""The HTTP application: OpenAI's audio and chat endpoints over an engine."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from slm_jax.serving import errors, requests
from slm_jax.serving.answering import Answerer, Reply
from slm_jax.serving.body_limit import BodyLimit
from slm_jax.serving.metrics import Metrics
from slm_jax.serving.requests import AudioRequest
from slm_jax.serving.subtitles import to_srt, to_vtt

_SSE = "text/event-stream"
_Handler = Callable[[Request], Awaitable[Response]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerLimits:
  """What one client may ask of a server.

  Attributes:
    max_upload_bytes: of a request's body.
    max_audio_seconds: of a recording.
    token: that clients must bear; None lets anyone ask.
  """

  max_upload_bytes: int = 25 * 2**20
  max_audio_seconds: float = 1500.0
  token: str | None = None


def make_app(answerer: Answerer, metrics: Metrics, limits: ServerLimits) -> Any:
  """The ASGI application. Its start warms the engine up; until then it answers 503."""
  server = _Server(answerer, metrics, limits)

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    warming = asyncio.create_task(_warm_up(answerer))
    yield
    answerer.close()
    await warming

  routes = [
    Route("/", server.page),
    Route("/healthz", server.health),
    Route("/metrics", server.metrics),
    Route("/v1/models", server.guarded(server.models, "models")),
    *(
      Route(path, server.guarded(handler, name), methods=["POST"])
      for path, handler, name in (
        ("/v1/audio/transcriptions", server.transcribe, "transcriptions"),
        ("/v1/audio/translations", server.translate, "translations"),
        ("/v1/chat/completions", server.chat, "chat"),
      )
    ),
  ]
  app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refuse})
  return BodyLimit(app, limits.max_upload_bytes)


async def _refuse(request: Request, error: Exception) -> Response:
  """An address or a method that the server does not have."""
  assert isinstance(error, HTTPException)
  reason = errors.BadRequest(f"{request.method} {request.url.path}: {error.detail}")
  return JSONResponse(reason.body(), error.status_code, error.headers)


async def _warm_up(answerer: Answerer) -> None:
  """Ends the process if the model cannot be compiled: it would answer 503 for ever."""
  try:
    await anyio.to_thread.run_sync(answerer.start)
  except Exception as error:
    print(f"slm_jax: error: the model does not compile: {error}", file=sys.stderr, flush=True)
    signal.raise_signal(signal.SIGTERM)


class _Server:
  """The endpoints."""

  def __init__(self, answerer: Answerer, metrics: Metrics, limits: ServerLimits):
    self._answerer, self._metrics, self._limits = answerer, metrics, limits

  def guarded(self, handler: _Handler, name: str) -> _Handler:
    """Asks for the token, counts, and turns errors into answers."""

    async def guard(request: Request) -> Response:
      began, status = time.monotonic(), 499
      try:
        self._check(request)
        response = await handler(request)
        status = response.status_code
        return response
      except errors.RequestError as error:
        status = error.status
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        return JSONResponse(error.body(), status, headers)
      except HTTPException as error:  # a form that cannot be read
        status = error.status_code
        return JSONResponse(errors.BadRequest(str(error.detail)).body(), status)
      except ClientDisconnect:
        return Response(status_code=status)  # nobody reads it
      except Exception:
        status = 500
        raise
      finally:
        self._metrics.requests.labels(name, str(status)).inc()
        self._metrics.request_seconds.labels(name).observe(time.monotonic() - began)

    return guard

  def _check(self, request: Request) -> None:
    if self._limits.token is not None:
      kind, _, token = request.headers.get("authorization", "").partition(" ")
      expected = self._limits.token.encode()
      if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), expected):
        raise errors.Unauthorized(
          "expected the header Authorization: Bearer TOKEN", code="invalid_api_key"
        )
    if not self._answerer.ready:
      raise errors.Unready("the server is still compiling; try again in a moment")

  async def page(self, request: Request) -> Response:
    """For people."""
    page = resources.files("slm_jax") / "assets" / "serving" / "index.html"
    return HTMLResponse(page.read_text("utf-8"))

  async def health(self, request: Request) -> Response:
    """For load balancers."""
    if not self._answerer.ready:
      return JSONResponse({"status": "compiling"}, 503)
    return JSONResponse({"status": "ok"})

  async def metrics(self, request: Request) -> Response:
    """For Prometheus."""
    self._metrics.compiled.set(self._answerer.compiled_programs())
    return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

  async def models(self, request: Request) -> Response:
    """The adapters, as models."""
    names = self._answerer.adapters.names
    data = [{"id": n, "object": "model", "created": 0, "owned_by": "slm_jax"} for n in names]
    return JSONResponse({"object": "list", "data": data})

  async def transcribe(self, request: Request) -> Response:
    """POST /v1/audio/transcriptions."""
    return await self._audio(request, "transcribe")

  async def translate(self, request: Request) -> Response:
    """POST /v1/audio/translations, into English as OpenAI's."""
    return await self._audio(request, "translate", target="English")

  async def _audio(self, request: Request, task: str, **fields: str) -> Response:
    async with request.form(max_files=2, max_fields=16) as form:
      asked = await anyio.to_thread.run_sync(
        lambda: requests.read_form(form, max_seconds=self._limits.max_audio_seconds)
      )
    instruction = self._answerer.instruction(asked.model, task, **fields)
    reply = self._answerer.ask(dataclasses.replace(asked, instruction=instruction))
    if asked.stream:
      return StreamingResponse(_audio_events(reply), media_type=_SSE)
    await _whole(request, reply)
    return _audio_response(asked, reply, task)

  async def chat(self, request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await request.body()
    asked = await anyio.to_thread.run_sync(
      lambda: requests.read_chat(body, max_seconds=self._limits.max_audio_seconds)
    )
    if asked.instruction is None:
      asked = dataclasses.replace(
        asked, instruction=self._answerer.instruction(asked.model, "default")
      )
    reply = self._answerer.ask(asked)
    if asked.stream:
      return StreamingResponse(_chat_events(asked, reply), media_type=_SSE)
    await _whole(request, reply)
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    choice = {
      "index": 0,
      "message": message,
      "finish_reason": reply.finish_reason,
      "logprobs": None,
    }
    return JSONResponse(
      _chat_object(asked, reply, "chat.completion") | {"choices": [choice], "usage": reply.usage()}
    )


async def _whole(request: Request, reply: Reply) -> None:
  """Waits for the whole answer, or until the client has hung up; raises ClientDisconnect."""
  answered = asyncio.ensure_future(reply.finish())
  gone = asyncio.ensure_future(_hung_up(request))
  try:
    await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
    if not answered.done():
      raise ClientDisconnect
    await answered
  finally:
    gone.cancel()
    answered.cancel()
    reply.cancel()


async def _hung_up(request: Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


def _audio_response(asked: AudioRequest, reply: Reply, task: str) -> Response:
  text, segments = reply.text, reply.segments()
  if asked.response_format == "text":
    return Response(text + "\n", media_type="text/plain")
  if asked.response_format == "srt":
    return Response(to_srt(segments), media_type="text/plain")
  if asked.response_format == "vtt":
    return Response(to_vtt(segments), media_type="text/vtt")
  if asked.response_format == "json":
    usage = {"type": "duration", "seconds": round(reply.seconds)}
    return JSONResponse({"text": text, "usage": usage})
  listed = [
    {
      "id": i, "seek": 0, "start": s.start, "end": s.end, "text": s.text, "tokens": ids,
      "temperature": asked.temperature, "avg_logprob": 0.0, "compression_ratio": 1.0,
      "no_speech_prob": 0.0,
    }
    for i, (s, ids) in enumerate(zip(segments, reply.ids, strict=True))
  ]  # fmt: skip
  return JSONResponse(
    {
      "task": task,
      "language": asked.language or "unknown",
      "duration": reply.seconds,
      "text": text,
      "segments": listed,
    }
  )


async def _audio_events(reply: Reply) -> AsyncIterator[bytes]:
  try:
    async for delta in reply.deltas():
      yield _event({"type": "transcript.text.delta", "delta": delta})
    yield _event({"type": "transcript.text.done", "text": reply.text})
  except errors.RequestError as error:
    yield _event(error.body())
  finally:
    reply.cancel()


async def _chat_events(asked: AudioRequest, reply: Reply) -> AsyncIterator[bytes]:
  base = _chat_object(asked, reply, "chat.completion.chunk")

  def chunk(delta: dict, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return _event(base | {"choices": [choice]})

  try:
    yield chunk({"role": "assistant", "content": ""})
    async for delta in reply.deltas():
      yield chunk({"content": delta})
    yield chunk({}, reply.finish_reason)
    if asked.include_usage:
      yield _event(base | {"choices": [], "usage": reply.usage()})
    yield b"data: [DONE]\n\n"
  except errors.RequestError as error:
    yield _event(error.body())
  finally:
    reply.cancel()


def _chat_object(asked: AudioRequest, reply: Reply, kind: str) -> dict[str, Any]:
  return {"id": reply.id, "object": kind, "created": reply.created, "model": asked.model}


def _event(value: dict) -> bytes:
  return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
