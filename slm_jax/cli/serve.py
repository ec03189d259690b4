"""`slm_jax serve`: bundles behind OpenAI's HTTP endpoints."""

import argparse
import contextlib
import os
import socket
import sys
from pathlib import Path

from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = (
  "slm_jax serve --bundle=mini=bundles/mini --port=8000\n"
  "  curl -F file=@a.wav -F model=mini http://127.0.0.1:8000/v1/audio/transcriptions"
)
TOKEN_VARIABLE = "SLM_JAX_TOKEN"
_LARGEST_PORT = 65_535


def run(argv: list[str]) -> int:
  """Serves until SIGTERM or SIGINT; returns the exit status."""
  flags = _flags(argv)
  try:
    import uvicorn
  except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is not installed: pip install 'slm_jax[serve]'") from error
  from slm_jax.serving.answering import Answerer
  from slm_jax.serving.app import ServerLimits, make_app
  from slm_jax.serving.batcher import Batcher
  from slm_jax.serving.bundles import load_bundles
  from slm_jax.serving.engine import Engine, EngineConfig
  from slm_jax.serving.metrics import Metrics

  try:
    config = EngineConfig(
      batch_size=flags.batch_size,
      audio_seconds=tuple(flags.audio_seconds or EngineConfig.audio_seconds),
      prompt_length=flags.prompt_length,
      max_new_tokens=flags.max_new_tokens,
    )
  except ValueError as error:
    raise UserError(f"slm_jax serve: {error}") from error
  listeners = _bound(flags.host, flags.port)
  loaded = load_bundles(
    _named(flags.bundle),
    speech_encoder=flags.speech_encoder,
    language_model=flags.language_model,
    frozen_dtype=flags.frozen_dtype,
  )
  metrics = Metrics()
  engine = Engine(loaded.model, loaded.adapters, config)
  batcher = Batcher(engine, metrics, max_queue=flags.max_queue, max_wait=flags.max_wait)
  limits = ServerLimits(
    max_upload_bytes=int(flags.max_upload_mib * 2**20),
    max_audio_seconds=flags.max_audio_seconds,
    token=os.environ.get(TOKEN_VARIABLE) or None,
  )
  app = make_app(Answerer(engine, batcher, loaded.manifests), metrics, limits)
  guard = f"asking for the token of ${TOKEN_VARIABLE}" if limits.token else "open to anyone"
  names, port = ", ".join(loaded.adapters.names), listeners[0].getsockname()[1]
  print(
    f"[slm_jax] {names} on http://{flags.host}:{port}/, {guard}; /healthz says when it has compiled",
    file=sys.stderr,
    flush=True,
  )
  server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30))
  with contextlib.suppress(KeyboardInterrupt):
    server.run(sockets=listeners)
  return 0


def _bound(host: str, port: int) -> list[socket.socket]:
  """Sockets that have their addresses before models are loaded; they do not listen yet."""
  found = []
  try:
    if port > _LARGEST_PORT:  # getaddrinfo would take the rest of a division
      raise OverflowError(f"ports end at {_LARGEST_PORT}")
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(addresses):
      found.append(socket.socket(family, kind, protocol))
      found[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      if family == socket.AF_INET6:  # the same port of IPv4 is another address
        found[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
      found[-1].bind(address)
  except (OSError, OverflowError) as error:
    raise UserError(
      f"slm_jax serve: cannot listen at --host={host} --port={port}: {error}"
    ) from error
  return found


def _flags(argv: list[str]) -> argparse.Namespace:
  parser = parser_for("serve", EXAMPLE)
  parser.add_argument(
    "--bundle", action="append", default=[], help="NAME=FOLDER, or FOLDER; repeat for more adapters"
  )
  parser.add_argument("--speech_encoder", help="folder of the base, if not where training found it")
  parser.add_argument("--language_model", help="the same of the language model")
  parser.add_argument("--frozen_dtype", help="storage of the bases: float32, bfloat16 or int8")
  parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
  parser.add_argument("--port", type=int, default=8000)
  parser.add_argument("--batch_size", type=int, default=8, help="rows of a batch")
  parser.add_argument(
    "--audio_seconds",
    type=float,
    action="append",
    help="a declared length of audio, repeat with longer ones; longer recordings are cut at pauses (5, 15, 30)",
  )
  parser.add_argument(
    "--prompt_length", type=int, default=64, help="longest instruction, in tokens"
  )
  parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer, in tokens")
  parser.add_argument(
    "--max_wait", type=float, default=0.02, help="seconds that a batch waits to fill"
  )
  parser.add_argument("--max_queue", type=int, default=256, help="pieces of audio that may wait")
  parser.add_argument("--max_upload_mib", type=float, default=25.0, help="largest request")
  parser.add_argument("--max_audio_seconds", type=float, default=1500.0, help="longest recording")
  flags, _ = parse(parser, argv)
  if not flags.bundle:
    parser.error("give --bundle=NAME=FOLDER")
  for name in ("max_queue", "max_upload_mib", "max_audio_seconds"):
    if getattr(flags, name) <= 0:
      parser.error(f"--{name}={getattr(flags, name)} must be above 0")
  if flags.max_wait < 0:
    parser.error(f"--max_wait={flags.max_wait} must be 0 or more")
  return flags


def _named(bundles: list[str]) -> dict[str, str | Path]:
  named: dict[str, str | Path] = {}
  for text in bundles:
    name, separator, folder = text.partition("=")
    name, folder = (name, folder) if separator else (Path(text).name, text)
    if not name or not folder or name in named:
      raise UserError(f"--bundle={text}: expected NAME=FOLDER with a name that no other bundle has")
    named[name] = folder
  return named
