"""Two hundred damaged files of each format: samples or one line, soon, and in little memory."""

import fractions
import io
import resource
import struct
import time

import av
import numpy as np
import pytest
import soundfile

from slm_jax.audio import files
from slm_jax.errors import UserError

RATE, COUNT = 16_000, 200
SUBTYPES = {
  "wav": ("WAV", "PCM_16"),
  "float_wav": ("WAV", "FLOAT"),
  "flac": ("FLAC", "PCM_16"),
  "vorbis": ("OGG", "VORBIS"),
  "opus": ("OGG", "OPUS"),
  "mp3": ("MP3", "MPEG_LAYER_III"),
  "aiff": ("AIFF", "PCM_16"),
}
MEGABYTES = 1 << 10  # ru_maxrss counts KiB


def tone():
  rng = np.random.default_rng(0)
  time_axis = np.arange(RATE // 2) / RATE
  return (0.4 * np.sin(2 * np.pi * 300 * time_axis) + 0.05 * rng.normal(size=RATE // 2)).astype(
    "f4"
  )


def whole(kind):
  file = io.BytesIO()
  if kind != "m4a":
    container, subtype = SUBTYPES[kind]
    soundfile.write(file, tone(), RATE, format=container, subtype=subtype)
    return file.getvalue()
  with av.open(file, "w", format="ipod") as container:
    stream = container.add_stream("aac", rate=RATE, layout="mono")
    for start in range(0, RATE // 2, 1024):
      frame = av.AudioFrame.from_ndarray(tone()[None, start : start + 1024], "fltp", "mono")
      frame.sample_rate, frame.pts, frame.time_base = RATE, start, fractions.Fraction(1, RATE)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return file.getvalue()


def damage(data, seed):
  """Cut, bits flipped anywhere, bits flipped in the header, header fields made huge, bytes lost."""
  rng = np.random.default_rng(seed)
  changed = bytearray(data)
  match seed % 5:
    case 0:
      return bytes(changed[: rng.integers(1, len(data))])
    case 1 | 2:
      reach = len(data) if seed % 5 == 1 else min(200, len(data))
      for place in rng.integers(0, reach, 8):
        changed[place] ^= 1 << rng.integers(8)
    case 3:
      place = int(rng.integers(4, min(120, len(data) - 8)))
      changed[place : place + 4] = struct.pack("<I", int(rng.choice([0xFFFFFFFF, 0x7FFFFFFF])))
    case 4:
      start = int(rng.integers(0, len(data) - 40))
      del changed[start : start + int(rng.integers(1, 40))]
  return bytes(changed)


@pytest.mark.parametrize("kind", [*SUBTYPES, "m4a"])
def test_damage_gives_samples_or_one_line(kind, tmp_path):
  data = whole(kind)
  expected = len(files.decode_audio(data, "the file"))
  assert expected == pytest.approx(RATE // 2, abs=3_000)
  before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
  for seed in range(COUNT):
    changed = damage(data, seed)
    path = tmp_path / f"a.{'mp3' if seed % 2 else 'wav'}"  # the name is no promise
    path.write_bytes(changed)
    start = time.monotonic()
    try:
      samples = files.read_audio(path)
      # A wrong rate in the header stretches what is there, 16 times at most.
      assert samples.dtype == np.int16 and 0 < len(samples) <= 17 * RATE
    except UserError as error:
      assert "a." in str(error) and "\n" not in str(error)
      refused += 1
    assert time.monotonic() - start < 5
  assert refused >= COUNT // 10
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * MEGABYTES
