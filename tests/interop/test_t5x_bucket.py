"""T5X checkpoints in a bucket: TensorStore's own driver against a server that speaks as much of Google's API as it
asks for."""

import dataclasses
import http.server
import json
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from slm_jax.errors import UserError
from slm_jax.interop import t5x_format
from slm_jax.interop.language_model_source import open_language_model
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from tests.t5x_folders import CONFIG, assert_same, random_params, read_checkpoint, unscanned

PREFIX = "/storage/v1/b/bucket/o"


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    server, split = self.server, urllib.parse.urlsplit(self.path)
    root: Path = server.root  # pyright: ignore[reportAttributeAccessIssue]
    if not split.path.startswith(PREFIX):
      return self.answer(403, b"forbidden")
    name = urllib.parse.unquote(split.path.removeprefix(PREFIX).lstrip("/"))
    if not name:
      asked = dict(urllib.parse.parse_qsl(split.query))
      start, end = asked.get("startOffset", ""), asked.get("endOffset", "~")
      files = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
      items = [{"name": file, "size": "1"} for file in sorted(files) if start <= file < end]
      return self.answer(200, json.dumps({"items": items}).encode())
    server.read.append(name)  # pyright: ignore[reportAttributeAccessIssue]
    if not (root / name).is_file():
      return self.answer(404, b"")
    content = (root / name).read_bytes()
    if (wanted := self.headers.get("Range")) is None:
      return self.answer(200, content)
    first, last = wanted.removeprefix("bytes=").split("-")
    begin = int(first) if first else len(content) - int(last)
    stop = min(int(last) + 1 if first and last else len(content), len(content))
    part = f"bytes {begin}-{stop - 1}/{len(content)}"
    return self.answer(206, content[begin:stop], {"Content-Range": part})

  def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    self.send_response(code)
    for name, value in {"x-goog-generation": "1", **(headers or {})}.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, format, *args):  # noqa: A002  the name is the library's
    pass


@pytest.fixture(scope="module")
def server():
  """Serves `root` as gs://bucket and notes in `read` what was asked for.

  One for all tests: the driver looks its address up once.
  """
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    yield server
  server.shutdown()


@pytest.fixture
def bucket(server, tmp_path) -> Path:
  server.root, server.read = tmp_path, []
  return tmp_path


def test_t5xs_own_layout_with_its_config_gin(bucket, server):
  config = dataclasses.replace(CONFIG, mlp_activations=("silu", "linear"))
  save_t5x_checkpoint(bucket / "mt5", config, random_params(config), 3)
  source = open_language_model("gs://bucket/mt5/checkpoint_3/")
  assert source.config == config and source.tokenizer is None
  for name, array in traverse_util.flatten_dict(random_params(config), sep="/").items():
    np.testing.assert_array_equal(np.asarray(source.parameters[name]), array)
  assert "mt5/config.gin" in server.read


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_orbaxs_layout(bucket, server, use_ocdbt):
  target = traverse_util.unflatten_dict(unscanned(CONFIG), sep="/")
  tree = {"target": target, "state": {"m": np.ones((7, 7))}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)) as checkpointer:
    checkpointer.save(bucket / "run" / "checkpoint_3" / "state", tree)
  assert_same(read_checkpoint("gs://bucket/run/checkpoint_3", CONFIG), CONFIG)  # pyright: ignore
  assert not any("state.m" in name for name in server.read), "the optimiser's state is left alone"


def test_what_is_not_there_is_named(bucket):
  with pytest.raises(UserError, match="gs://bucket/mt5/checkpoint_1/state holds no parameters"):
    open_language_model("gs://bucket/mt5/checkpoint_1")
  with pytest.raises(
    UserError, match="gs://other/mt5/checkpoint_1/checkpoint cannot be read: PERMISSION_DENIED"
  ):
    open_language_model("gs://other/mt5/checkpoint_1")
  folder = save_t5x_checkpoint(bucket / "mt5", CONFIG, random_params(CONFIG), 1)
  (folder / "target.token_embedder.embedding" / "0.0").unlink()
  lost = t5x_format.open_target("gs://bucket/mt5/checkpoint_1")["token_embedder/embedding"]
  with pytest.raises(UserError, match="token_embedder/embedding cannot be read: NOT_FOUND"):
    lost.load((slice(0, 1), slice(0, 1)))
