"""A server under clients: five hundred requests from thirty-two at once, one in twenty of them wrong.

  python benchmarks/serve.py --bundle=bundles/mini --output=serve.json

Starts `slm_jax serve` twice, once with batches and once with a row at a time, and asks both the same: recordings of
random length, made of the demo's sample; three instructions and the adapter's own, some streamed. Wrong ones: no audio,
nothing, two hours of silence, a field that is not there, a bad token, clients that hang up. Each good answer is
compared with that of a server asked alone. Printed is JSON: latencies, requests a second, what was wrong, programs
compiled and memory before and after.
"""

import argparse
import base64
import concurrent.futures
import io
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

TOKEN = "benchmark"
SAMPLE = Path("slm_jax/assets/mini/sample.wav")
INSTRUCTIONS = ("Repeat the sentence.", "Translate to German.", "Translate to French.")
HANG_UP_SECONDS = 0.02
WRONG = {
  "not audio": 400, "0 bytes": 400, "2 h long": 400, "wrong field": 400, "bad token": 401, "hang-up": 0,
}  # fmt: skip


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--bundle", required=True)
  parser.add_argument("--requests", type=int, default=500)
  parser.add_argument("--clients", type=int, default=32)
  parser.add_argument("--wrong", type=float, default=0.05, help="share of wrong requests")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--output", help="the JSON goes here too")
  return parser.parse_args()


class Server:
  """A `slm_jax serve` of its own."""

  def __init__(self, bundle: str, batch_size: int):
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    self.address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "slm_jax", "serve", f"--bundle=one={bundle}"]
    command += [f"--port={port}", f"--batch_size={batch_size}", "--audio_seconds=2"]
    command += ["--audio_seconds=4", "--max_new_tokens=48", "--max_queue=10000"]
    began = time.monotonic()
    self.process = subprocess.Popen(command, env=os.environ | {"SLM_JAX_TOKEN": TOKEN})
    while self.get("/healthz")[0] != 200:
      if self.process.poll() is not None:
        raise SystemExit("the server did not start")
      time.sleep(0.2)
    self.ready_seconds = time.monotonic() - began

  def get(self, path: str) -> tuple[int, str]:
    try:
      with urllib.request.urlopen(self.address + path) as answer:
        return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
      return error.code, error.read().decode()
    except urllib.error.URLError:
      return 0, ""

  def metric(self, name: str) -> float:
    lines = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics")[1], re.M)
    return sum(map(float, lines))

  def resident_mib(self) -> float:
    status = Path(f"/proc/{self.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

  def close(self) -> None:
    self.process.terminate()
    self.process.wait(60)


def recordings(count: int, rng: random.Random) -> list[bytes]:
  """WAV files of one word to the whole sample said twice, in random noise."""
  sound, rate = soundfile.read(SAMPLE, dtype="int16")
  noise = np.random.default_rng(0)
  made = []
  for _ in range(count):
    length = rng.randint(rate // 2, 2 * len(sound))
    repeated = np.resize(sound, length).astype(np.int32)
    repeated += noise.integers(-40, 40, length)
    file = io.BytesIO()
    soundfile.write(file, repeated.astype(np.int16), rate, format="WAV")
    made.append(file.getvalue())
  return made


def plan(flags: argparse.Namespace) -> list[dict[str, Any]]:
  """What is asked, in order; the same for every server."""
  rng = random.Random(0)
  sounds = recordings(40, rng)
  asked: list[dict[str, Any]] = []
  for i in range(flags.requests):
    asked.append(
      {
        "sound": rng.choice(sounds),
        "instruction": rng.choice((None, *INSTRUCTIONS)),
        "stream": rng.random() < 0.3,
        "wrong": None,
        "number": i,
      }
    )
  for k, one in enumerate(rng.sample(asked, round(flags.wrong * flags.requests))):
    one["wrong"] = list(WRONG)[k % len(WRONG)]
  return asked


def two_hours() -> bytes:
  """As FLAC: silence is small, so that the length is what is refused."""
  file = io.BytesIO()
  soundfile.write(file, np.zeros(7200 * 8000, np.int16), 8000, format="FLAC")
  return file.getvalue()


LONG = two_hours()


def ask(server: Server, one: dict[str, Any]) -> tuple[int, str, float]:
  """(status, text or reason, seconds)."""
  wrong = one["wrong"]
  instead = {"not audio": b"no sound", "0 bytes": b"", "2 h long": LONG}
  sound: Any = instead.get(wrong, one["sound"])
  part = {"data": base64.b64encode(sound).decode(), "format": "wav"}
  content: list[dict] = [{"type": "input_audio", "input_audio": part}]
  if one["instruction"]:
    content.append({"type": "text", "text": one["instruction"]})
  body = {"model": "one", "messages": [{"role": "user", "content": content}]}
  body |= {"stream": one["stream"]} | ({"colour": "red"} if wrong == "wrong field" else {})
  token = "x" if wrong == "bad token" else TOKEN
  request = urllib.request.Request(
    f"{server.address}/v1/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
  )
  began = time.perf_counter()
  try:
    timeout = HANG_UP_SECONDS if wrong == "hang-up" else 300
    with urllib.request.urlopen(request, timeout=timeout) as answer:
      text, status = answer.read().decode(), answer.status
  except urllib.error.HTTPError as error:
    text, status = json.loads(error.read())["error"]["message"], error.code
  except OSError:
    text, status = "", 0
  seconds = time.perf_counter() - began
  if status == 200:
    text = streamed(text) if one["stream"] else json.loads(text)["choices"][0]["message"]["content"]
  return status, text, seconds


def streamed(body: str) -> str:
  chunks = [
    json.loads(line.removeprefix("data: "))
    for line in body.split("\n\n")
    if line and line != "data: [DONE]"
  ]
  return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def run(server: Server, asked: list[dict[str, Any]], clients: int) -> dict[str, Any]:
  """All requests; what came of them."""
  ask(server, asked[0] | {"wrong": None})
  compiled, memory = server.metric("slm_jax_compiled_programs"), server.resident_mib()
  began = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    answers = list(pool.map(lambda one: ask(server, one), asked))
  seconds = time.perf_counter() - began
  good = [a for a, one in zip(answers, asked, strict=True) if one["wrong"] is None]
  latencies = sorted(s for _, _, s in good)
  refused = {
    kind: sorted({a[0] for a, one in zip(answers, asked, strict=True) if one["wrong"] == kind})
    for kind in WRONG
  }
  batches = server.metric("slm_jax_batch_rows_count")
  return {
    "answers": answers,
    "ready_seconds": round(server.ready_seconds, 1),
    "requests_per_second": round(len(asked) / seconds, 2),
    "p50_seconds": round(statistics.median(latencies), 3),
    "p95_seconds": round(latencies[int(0.95 * len(latencies))], 3),
    "rows_a_batch": round(server.metric("slm_jax_batch_rows_sum") / batches, 2),
    "good_answered": sum(status == 200 for status, _, _ in good),
    "good": len(good),
    "statuses_of_wrong": refused,
    "compiled_after_warm_up": server.metric("slm_jax_compiled_programs") - compiled,
    "failed_batches": server.metric("slm_jax_failed_batches_total"),
    "resident_mib_before": round(memory),
    "resident_mib_after": round(server.resident_mib()),
  }


def main() -> None:
  flags = parse()
  asked = plan(flags)
  results = {}
  for name, batch_size, clients in (
    ("batched", flags.batch_size, flags.clients),
    ("one_by_one", 1, flags.clients),
  ):
    server = Server(flags.bundle, batch_size)
    try:
      results[name] = run(server, asked, clients)
      if name == "batched":
        # Each question again, alone.
        expected = [ask(server, one)[1] if one["wrong"] is None else "" for one in asked]
        results[name]["resident_mib_after_twice"] = round(server.resident_mib())
    finally:
      server.close()
  for found in results.values():
    answers = found.pop("answers")
    found["wrong_texts"] = sum(
      a[1] != text
      for a, one, text in zip(answers, asked, expected, strict=True)
      if not one["wrong"]
    )
  batched, single = results["batched"], results["one_by_one"]
  gain = batched["requests_per_second"] / single["requests_per_second"]
  report = {"settings": vars(flags), **results, "batching_times_faster": round(gain, 2)}
  text = json.dumps(report, indent=2)
  print(text)
  if flags.output:
    Path(flags.output).write_text(text + "\n")


if __name__ == "__main__":
  main()
