"""Refuses bodies that are too large, whether or not they say so ahead."""

from typing import Any

from starlette.responses import JSONResponse

from slm_jax.serving.errors import TooLarge


class _Exceeded(Exception):
  """More came than may."""


class BodyLimit:
  """ASGI middleware: 413 once a request's body has more than `max_bytes`; the rest is not read."""

  def __init__(self, app: Any, max_bytes: int):
    self._app, self._max_bytes = app, max_bytes

  async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    read = int(declared) if declared.isdigit() else 0
    began = False

    async def limited() -> dict:
      nonlocal read
      message = await receive()
      read += len(message.get("body", b""))
      if read > self._max_bytes:
        raise _Exceeded
      return message

    async def noted(message: dict) -> None:
      nonlocal began
      began = True
      await send(message)

    try:
      if read > self._max_bytes:
        raise _Exceeded
      read = 0
      await self._app(scope, limited, noted)
    except _Exceeded:
      if not began:
        error = TooLarge(f"the request has more than {self._max_bytes} bytes", code="too_large")
        await JSONResponse(error.body(), 413, {"Connection": "close"})(scope, receive, send)
