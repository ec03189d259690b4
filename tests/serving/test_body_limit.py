"""A body that is too large is refused, whether its length is said ahead or found out."""

import asyncio

import pytest

from slm_jax.serving.body_limit import BodyLimit


async def echo(scope, receive, send):
  more, size = True, 0
  while more:
    message = await receive()
    size += len(message.get("body", b""))
    more = message.get("more_body", False)
  await send({"type": "http.response.start", "status": 200, "headers": []})
  await send({"type": "http.response.body", "body": str(size).encode()})


def status(chunks: list[bytes], headers: list | None = None) -> tuple[int, int]:
  """(status, chunks that were read)."""
  sent, read = [], iter(range(len(chunks)))
  count = 0

  async def receive():
    nonlocal count
    i = next(read)
    count += 1
    return {"type": "http.request", "body": chunks[i], "more_body": i + 1 < len(chunks)}

  async def send(message):
    sent.append(message)

  scope = {"type": "http", "headers": headers or []}
  asyncio.run(BodyLimit(echo, 100)(scope, receive, send))
  return sent[0]["status"], count


@pytest.mark.parametrize(
  ("chunks", "headers", "expected"),
  [
    ([b"x" * 100], [], (200, 1)),
    ([b"x" * 50] * 2, [(b"content-length", b"100")], (200, 2)),
    ([b"x" * 50] * 9, [], (413, 3)),
    ([b"x"], [(b"content-length", b"101")], (413, 0)),
    ([b"x" * 60] * 9, [(b"content-length", b"10")], (413, 2)),
    ([b"x" * 60], [(b"content-length", b"many")], (200, 1)),
  ],
)
def test_limit(chunks, headers, expected):
  assert status(chunks, headers) == expected
