"""The server over HTTP: OpenAI's own client, wrong requests, clients that hang up, a browser."""

import base64
import contextlib
import io
import os
import queue
import re
import shutil
import socket
import subprocess
import threading
import time
import wave
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import uvicorn
from starlette.responses import HTMLResponse, Response
from starlette.routing import request_response

import slm_jax.bundle
from slm_jax.serving.answering import Answerer
from slm_jax.serving.app import ServerLimits, make_app
from slm_jax.serving.batcher import Batcher
from slm_jax.serving.bundles import load_bundles
from slm_jax.serving.engine import Engine, EngineConfig
from slm_jax.serving.metrics import Metrics

CONFIG = EngineConfig(
  batch_size=4, audio_seconds=(0.25,), prompt_length=16, max_new_tokens=12, tokens_a_call=4
)
LIMITS = ServerLimits(max_upload_bytes=200_000, max_audio_seconds=2.0, token="open sesame")


def wav(samples: np.ndarray) -> bytes:
  file = io.BytesIO()
  with wave.open(file, "wb") as out:
    out.setparams((1, 2, 16_000, len(samples), "NONE", ""))
    out.writeframes(samples.tobytes())
  return file.getvalue()


@contextlib.contextmanager
def running(app):
  """Address of a server in a thread."""
  with socket.create_server(("127.0.0.1", 0)) as found:
    port = found.getsockname()[1]
  server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
  thread = threading.Thread(target=server.run)
  thread.start()
  address = f"http://127.0.0.1:{port}"
  try:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
      with contextlib.suppress(httpx.HTTPError):
        if httpx.get(f"{address}/healthz").status_code == 200:
          break
      time.sleep(0.1)
    yield address
  finally:
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def engine(bundles):
  loaded = load_bundles(bundles)
  return Engine(loaded.model, loaded.adapters, CONFIG), loaded.manifests


def make(engine, *, max_queue=64, limits=LIMITS):
  metrics = Metrics()
  batcher = Batcher(engine[0], metrics, max_queue=max_queue, max_wait=0.01)
  return make_app(Answerer(engine[0], batcher, engine[1]), metrics, limits)


@pytest.fixture(scope="module")
def address(engine):
  with running(make(engine)) as found:
    yield found


@pytest.fixture(scope="module")
def client(address):
  return openai.OpenAI(base_url=f"{address}/v1", api_key="open sesame", max_retries=0)


@pytest.fixture(scope="module")
def expected(bundles, noises):
  """(adapter, number of a noise, instruction) → text."""
  loaded = {name: slm_jax.bundle.load(folder) for name, folder in bundles.items()}

  def text(name: str, i: int, instruction: str) -> str:
    found = loaded[name].generate([noises[i]], instruction, max_new_tokens=12, batch_size=4)
    return found[0]

  return text


def question(sound: bytes, text: str | None = "ab dei"):
  data = base64.b64encode(sound).decode()
  content: list = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
  if text is not None:
    content.append({"type": "text", "text": text})
  return [{"role": "user", "content": content}]


def test_models_are_the_adapters(client):
  assert [model.id for model in client.models.list()] == ["one", "two"]


@pytest.mark.parametrize("name", ["one", "two"])
def test_transcriptions_in_every_format(client, expected, noises, name):
  text = expected(name, 0, "lisa")
  file = ("a.wav", wav(noises[0]))

  def ask(response_format):
    return client.audio.transcriptions.create(
      model=name, file=file, response_format=response_format
    )

  assert ask("json").text == text
  assert ask("text").strip() == text.strip()
  verbose = ask("verbose_json")
  seconds = len(noises[0]) / 16_000
  assert verbose.text == text and verbose.duration == pytest.approx(seconds)
  assert [(s.start, s.end, s.text) for s in verbose.segments] == [(0.0, seconds, text)]
  clock = f"00:00:00,{round(seconds * 1000):03d}"
  assert ask("srt").strip() == f"1\n00:00:00,000 --> {clock}\n{text}".strip()
  assert ask("vtt").startswith(f"WEBVTT\n\n00:00:00.000 --> {clock.replace(',', '.')}\n")


def test_translations_ask_for_english(client, expected, noises):
  file = ("a.wav", wav(noises[1]))
  found = client.audio.translations.create(model="two", file=file)
  assert found.text == expected("two", 1, "ab English")


def test_chat_answers_an_instruction(client, expected, noises):
  found = client.chat.completions.create(model="one", messages=question(wav(noises[2])))
  text = expected("one", 2, "ab dei")
  assert found.choices[0].message.content == text
  assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
  own = client.chat.completions.create(model="one", messages=question(wav(noises[2]), None))
  assert own.choices[0].message.content == expected("one", 2, "abdei")
  short = client.chat.completions.create(
    model="one", messages=question(wav(noises[2])), max_completion_tokens=2
  )
  assert short.usage.completion_tokens <= 2 and short.choices[0].finish_reason == "length"


def test_streams_say_the_same_piece_by_piece(client, expected, noises):
  text = expected("two", 3, "ab dei")
  chunks = list(
    client.chat.completions.create(
      model="two", messages=question(wav(noises[3])), stream=True,
      stream_options={"include_usage": True},
    )
  )  # fmt: skip
  deltas = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
  assert "".join(deltas) == text and len(deltas) > 1
  assert chunks[-1].usage.completion_tokens > 0
  events = list(
    client.audio.transcriptions.create(model="two", file=("a.wav", wav(noises[3])), stream=True)
  )
  heard = "".join(e.delta for e in events if e.type == "transcript.text.delta")
  assert heard == events[-1].text == expected("two", 3, "lisa")


def test_long_recordings_are_cut_and_have_times(client, noises):
  sound = np.concatenate(noises[:6])
  found = client.audio.transcriptions.create(
    model="one", file=("a.wav", wav(sound)), response_format="verbose_json"
  )
  times = [time for s in found.segments for time in (s.start, s.end)]
  assert len(found.segments) > 4 and times[0] == 0
  assert times == sorted(times) and times[-1] == pytest.approx(len(sound) / 16_000)


def headers(token="open sesame"):
  return {"Authorization": f"Bearer {token}"}


GOOD = wav(np.full(2000, 900, np.int16))


@pytest.mark.parametrize(
  ("status", "message", "fields"),
  [
    (400, "file is missing", {"data": {"model": "one"}}),
    (400, "file is missing", {"json": {"model": "one"}}),
    (400, "expected WAV, FLAC", {"files": {"file": b"no sound at all"}, "data": {"model": "one"}}),
    (400, "empty", {"files": {"file": b""}, "data": {"model": "one"}}),
    (400, "model is missing", {"files": {"file": GOOD}}),
    (404, "no model 'three'", {"files": {"file": GOOD}, "data": {"model": "three"}}),
    (400, "response_format 'pdf'",
     {"files": {"file": GOOD}, "data": {"model": "one", "response_format": "pdf"}}),
    (400, "temperature '9'",
     {"files": {"file": GOOD}, "data": {"model": "one", "temperature": "9"}}),
    (400, "colour is not supported",
     {"files": {"file": GOOD}, "data": {"model": "one", "colour": "red"}}),
    (400, "2.5 s long", {"files": {"file": wav(np.ones(40_000, np.int16))}, "data": {"model": "one"}}),
    (413, "more than 200000 bytes",
     {"files": {"file": bytes(300_000)}, "data": {"model": "one"}}),
    (400, "language is a file",
     {"files": {"file": GOOD, "language": ("a", b"x")}, "data": {"model": "one"}}),
    (400, "stream 'perhaps'",
     {"files": {"file": GOOD}, "data": {"model": "one", "stream": "perhaps"}}),
    (401, "Bearer", {"files": {"file": GOOD}, "data": {"model": "one"}, "headers": headers("x")}),
  ],
)  # fmt: skip
def test_wrong_forms_are_refused_with_a_reason(address, status, message, fields):
  fields = {"headers": headers(), **fields}
  answer = httpx.post(f"{address}/v1/audio/transcriptions", **fields)
  assert answer.status_code == status
  error = answer.json()["error"]
  assert message in error["message"] and error["type"] == "invalid_request_error"
  assert "/tmp" not in error["message"]


@pytest.mark.parametrize(
  ("message", "body"),
  [
    ("not JSON", b"{"),
    ("no JSON object", b"[]"),
    ("not JSON", b"[" * 100_000),
    ("messages: expected", {"model": "one"}),
    ("0 input_audio parts", {"model": "one", "messages": [{"role": "user", "content": "hello"}]}),
    ("one user message", {"model": "one", "messages": question(GOOD) * 2}),
    ("not base64", {"model": "one", "messages": [
      {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "é"}}]}]}),
    ("of type 'image_url'", {"model": "one", "messages": [
      {"role": "user", "content": [{"type": "image_url"}]}]}),
    ("modalities: ", {"model": "one", "messages": question(GOOD), "modalities": ["text", "audio"]}),
    ("n: one choice", {"model": "one", "messages": question(GOOD), "n": 3}),
    ("tools is not supported", {"model": "one", "messages": question(GOOD), "tools": []}),
    ("expected 1 or more", {"model": "one", "messages": question(GOOD), "max_tokens": 0}),
    ("not JSON", b'{"model": "\\ud800"}'),
    ("one user message", {"model": "one", "messages": [{"role": ["user"]}]}),
    ("temperature 1000", {"model": "one", "messages": question(GOOD), "temperature": 10**400}),
    ("stream 'perhaps'", {"model": "one", "messages": question(GOOD), "stream": "perhaps"}),
    ("more than the 16", {"model": "one", "messages": question(GOOD, "lisa " * 40)}),
  ],
)  # fmt: skip
def test_wrong_questions_are_refused_with_a_reason(address, message, body):
  fields: Any = {"content": body} if isinstance(body, bytes) else {"json": body}
  answer = httpx.post(f"{address}/v1/chat/completions", headers=headers(), **fields)
  assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_the_clients_errors_are_openais(address, client):
  with pytest.raises(openai.NotFoundError):
    client.chat.completions.create(model="three", messages=question(GOOD))
  stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
  with pytest.raises(openai.AuthenticationError):
    stranger.models.list()
  for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
    answer = httpx.request(method, address + path, headers=headers())
    assert answer.status_code == status and path in answer.json()["error"]["message"]


def metric(address, name) -> float:
  text = httpx.get(f"{address}/metrics").text
  return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))


def test_many_clients_at_once_some_of_whom_hang_up(address, client, expected, noises):
  """Every answer is its own, and nothing is compiled."""
  wanted = {(n, i): expected(n, i, "ab dei") for n in ("one", "two") for i in range(6)}
  compiled = metric(address, "slm_jax_compiled_programs")
  wrong = []

  def ask(k: int) -> None:
    name, i = ("one", "two")[k % 2], k % 6
    body = {"model": name, "messages": question(wav(noises[i])), "stream": k % 3 == 0}
    if k % 7 == 0:
      with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers(), timeout=0.001)
      return
    found = client.chat.completions.create(**body)
    if body["stream"]:
      text = "".join(c.choices[0].delta.content or "" for c in found)
    else:
      text = found.choices[0].message.content
    if text != wanted[name, i]:
      wrong.append((k, text))

  threads = [threading.Thread(target=ask, args=(k,)) for k in range(42)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert not wrong
  assert metric(address, "slm_jax_compiled_programs") == compiled > 0
  assert metric(address, "slm_jax_failed_batches_total") == 0
  rows = metric(address, "slm_jax_batch_rows_sum") / metric(address, "slm_jax_batch_rows_count")
  assert rows > 1


def test_a_full_queue_turns_clients_away(engine, noises):
  with running(make(engine, max_queue=2)) as address:
    sound = np.concatenate(noises[:6])  # more pieces than may wait
    answer = httpx.post(
      f"{address}/v1/audio/transcriptions",
      files={"file": wav(sound)},
      data={"model": "one"},
      headers=headers(),
    )
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "queue_full"


DRIVER = """<iframe src="/" width=800 height=800></iframe><script>
const until = async (test) => { while (!test()) await new Promise((r) => setTimeout(r, 50)); };
(async () => {
  const frame = document.querySelector("iframe");
  await new Promise((resolve) => frame.addEventListener("load", resolve));
  const page = frame.contentDocument, at = (id) => page.getElementById(id);
  at("token").value = "open sesame";
  at("token").dispatchEvent(new Event("change"));
  await until(() => at("model").options.length);
  const ask = async () => {
    at("ask").click();
    await until(() => !at("ask").disabled && !at("status").textContent.includes("asking"));
    return `${at("answer").className}|${at("answer").textContent}|${at("status").textContent}`;
  };
  const results = [await ask()];
  const files = new DataTransfer();
  files.items.add(new File([await (await fetch("/noise.wav")).arrayBuffer()], "noise.wav"));
  at("file").files = files.files;
  at("file").dispatchEvent(new Event("change"));
  at("model").value = "two";
  at("instruction").value = "ab dei";
  results.push(await ask());
  at("record").click();
  await until(() => at("record").textContent === "Stop");
  await new Promise((r) => setTimeout(r, 400));
  at("record").click();
  await until(() => at("record").textContent === "Record");
  results.push(await ask());
  await fetch("/results", { method: "POST", body: JSON.stringify(results) });
})();
</script>"""


def test_the_page_in_a_browser(engine, expected, noises, tmp_path):
  """Asks without audio, about a file, and about what the (pretended) microphone hears."""
  browser = shutil.which("chromium") or shutil.which("google-chrome")
  if browser is None:
    assert not os.environ.get("CI"), "no Chromium: .ci/run installs it"
    pytest.skip("no Chromium: apt-get install chromium")
  app = make(engine)

  results: queue.Queue = queue.Queue()

  async def take(request):
    results.put(await request.json())
    return Response()

  async def driven(scope, receive, send):
    pages = {"/drive": HTMLResponse(DRIVER), "/noise.wav": Response(wav(noises[5]))}
    if (path := scope.get("path")) == "/results":
      await request_response(take)(scope, receive, send)
    else:
      await pages.get(path, app)(scope, receive, send)

  with running(driven) as address:
    process = subprocess.Popen(
      [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--user-data-dir={tmp_path}", f"{address}/drive",
      ],
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
      texts = results.get(timeout=90)
    finally:
      process.terminate()
      process.wait(30)
  assert texts[0] == "failed|choose or record audio first|"
  assert texts[1].startswith(f"|{expected('two', 5, 'ab dei')}|")
  kind, heard, _ = texts[2].split("|")
  assert not kind and heard
