"""MP4 audio: the sound, its length, and damage."""

import builtins
import fractions

import av
import numpy as np
import pytest

from slm_jax.audio import files
from slm_jax.errors import UserError

RATE = 44_100


@pytest.fixture(scope="module")
def m4a(tmp_path_factory):
  """Two seconds of 440 Hz, stereo AAC."""
  path = tmp_path_factory.mktemp("mp4") / "a.m4a"
  tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
  with av.open(str(path), "w", format="ipod") as container:
    stream = container.add_stream("aac", rate=RATE, layout="stereo")
    for start in range(0, len(tone), 1024):
      block = np.repeat(tone[None, start : start + 1024], 2, axis=0).astype("float32")
      frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
      frame.sample_rate, frame.pts, frame.time_base = RATE, start, fractions.Fraction(1, RATE)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def test_the_sound_and_its_length_come_through(m4a):
  info = files.probe_audio(m4a)
  assert (info.sample_rate, info.channels, info.subtype) == (RATE, 2, "AAC")
  assert info.seconds == pytest.approx(2, abs=0.1)
  samples = files.read_audio(m4a)
  assert samples.dtype == np.int16 and len(samples) == pytest.approx(32_000, abs=1_000)
  expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
  inner = samples[4_000:24_000] / files.FULL_SCALE
  # AAC may shift the tone: the best of a period's shifts is compared.
  error = min(np.abs(inner - expected[4_000 + k : 24_000 + k]).max() for k in range(-40, 41))
  assert error < 0.05
  np.testing.assert_array_equal(files.decode_audio(m4a.read_bytes(), "a record"), samples)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9])
def test_a_cut_file_is_one_line(m4a, tmp_path, keep):
  data = m4a.read_bytes()
  path = tmp_path / "cut.m4a"
  path.write_bytes(data[: int(len(data) * keep)])
  with pytest.raises(UserError, match="audio file .*cut.m4a.* is "):
    files.read_audio(path)


def test_flipped_bits_give_samples_or_one_line(m4a):
  data = m4a.read_bytes()
  for seed in range(40):
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for place in rng.integers(0, len(data), 20):
      changed[place] ^= 1 << rng.integers(8)
    try:
      assert len(files.decode_audio(bytes(changed), "a record")) < 10 * 16_000
    except UserError as error:
      assert str(error).startswith("a record ") and "\n" not in str(error)


def test_without_the_decoder_the_error_says_what_to_install(m4a, monkeypatch):
  real = builtins.__import__

  def without_av(name, *args, **kwargs):
    if name.split(".")[0] == "av":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without_av)
  with pytest.raises(UserError, match=r"pip install 'slm_jax\[m4a\]'"):
    files.read_audio(m4a)
