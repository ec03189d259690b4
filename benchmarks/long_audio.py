"""Peak memory of encoding 5, 20 and 60 minutes in windows, and how far frames are from those of one pass.

  python benchmarks/long_audio.py --encoder slm_jax:mini/speech_encoder

Each length is encoded in a process of its own, whose peak resident memory is reported; the audio itself (int16, 115 MB
an hour) is part of it, frames are let go. Printed is JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

MINUTES = (5, 20, 60)
SAMPLE_RATE = 16_000


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--encoder", default="slm_jax:mini/speech_encoder")
  parser.add_argument("--keep_seconds", type=float, default=32.0)
  parser.add_argument("--context_seconds", type=float, default=16.0)
  parser.add_argument("--minutes", type=float, help=argparse.SUPPRESS)
  return parser.parse_args()


def speech(minutes: float) -> np.ndarray:
  """The package's sample of speech, over and over."""
  from slm_jax.audio.files import read_audio
  from slm_jax.training.recipes import resolve_path

  one = read_audio(str(resolve_path("slm_jax:mini/sample.wav")))
  return np.resize(one, round(minutes * 60 * SAMPLE_RATE))


def encode(flags: argparse.Namespace) -> dict:
  """One length: seconds, peak memory, frames."""
  from slm_jax.interop import load_speech_encoder
  from slm_jax.training.recipes import resolve_path

  encoder = load_speech_encoder(resolve_path(flags.encoder))
  audio = speech(flags.minutes)
  start, frames = time.monotonic(), 0
  windows = encoder.windows(
    audio, keep_seconds=flags.keep_seconds, context_seconds=flags.context_seconds
  )
  for part in windows:
    frames += len(part.frames)
  return {
    "minutes": flags.minutes,
    "frames": frames,
    "seconds": round(time.monotonic() - start, 1),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "audio_mib": audio.nbytes // 2**20,
  }


def cuts(flags: argparse.Namespace) -> dict:
  """Frames of 90 seconds in one pass, against windows of several sizes, the worst of them."""
  from slm_jax.interop import load_speech_encoder
  from slm_jax.training.recipes import resolve_path

  encoder = load_speech_encoder(resolve_path(flags.encoder))
  audio = speech(90 / 60)
  whole = encoder(audio[None], [len(audio)])
  frames, classes = np.asarray(whole.frames[0]), None
  if whole.ctc_logits is not None:
    classes = np.asarray(whole.ctc_logits[0]).argmax(-1)
  found = {}
  for context in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 31.0):
    differences, changed = [], []
    for keep in (3.0, 5.0, 11.0):
      parts = list(encoder.windows(audio, keep_seconds=keep, context_seconds=context))
      differences.append(np.abs(np.concatenate([part.frames for part in parts]) - frames))
      logits = [part.ctc_logits for part in parts if part.ctc_logits is not None]
      if classes is not None:
        changed.append(float((np.concatenate(logits).argmax(-1) != classes).mean()))
    found[f"{context:g} s"] = {
      "largest": max(float(d.max()) for d in differences),
      "root_mean_square": max(float(np.sqrt(np.mean(np.square(d)))) for d in differences),
      "share_of_other_ctc_classes": max(changed, default=None),
    }
  return {"frames_rms": float(np.sqrt(np.mean(np.square(frames)))), "difference_by_context": found}


def main() -> None:
  flags = parse()
  if flags.minutes:
    print(json.dumps(encode(flags)))
    return
  report: dict = {
    "settings": {k: v for k, v in vars(flags).items() if k != "minutes"},
    "lengths": [],
  }
  for minutes in MINUTES:
    command = [sys.executable, *sys.argv, "--minutes", str(minutes)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report["lengths"].append(json.loads(answer))
  report["cuts"] = cuts(flags)
  print(json.dumps(report, indent=2))


if __name__ == "__main__":
  main()
