"""Decoding, resampling and cutting of audio files."""

import pathlib
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from slm_jax.audio import files
from slm_jax.errors import UserError


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(-32768, 32768, samples).astype(np.int16)


def _tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
  return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(
    "float32"
  )


# --- decoding --------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["wav", "flac", "aiff"])
def test_16_khz_mono_int16_is_bit_exact(tmp_path, container):
  path = tmp_path / f"a.{container}"
  pcm = _noise(70_001)  # more than one block, extremes included
  pcm[:4] = [-32768, 32767, 0, -1]
  soundfile.write(path, pcm, 16_000, subtype="PCM_16")
  result = files.read_audio(path)
  assert result.dtype == np.int16 and result.ndim == 1
  np.testing.assert_array_equal(result, pcm)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_channel_count_gives_the_same_tone(tmp_path, rate, channels):
  path = tmp_path / "a.wav"
  soundfile.write(path, np.repeat(_tone(rate)[:, None], channels, axis=1), rate, subtype="PCM_16")
  result = files.read_audio(path) / files.FULL_SCALE
  assert abs(len(result) - 16_000) <= 1
  expected = _tone(16_000)[: len(result)]
  inner = slice(400, -400)  # the resampling filter rings at the edges
  assert np.abs(result[: len(expected)] - expected)[inner].max() < 2e-3


@pytest.mark.parametrize(
  ("subtype", "tolerance"),
  [
    ("PCM_U8", 1 / 128),
    ("ULAW", 0.02),
    ("PCM_24", 1e-4),
    ("PCM_32", 1e-4),
    ("FLOAT", 1e-4),
    ("DOUBLE", 1e-4),
  ],
)
def test_any_bit_depth(tmp_path, subtype, tolerance):
  path = tmp_path / "a.wav"
  soundfile.write(path, _tone(16_000), 16_000, subtype=subtype)
  assert np.abs(files.read_audio(path) / files.FULL_SCALE - _tone(16_000)).max() <= tolerance


@pytest.mark.parametrize("container", ["ogg", "mp3"])
def test_compressed_files(tmp_path, container):
  path = tmp_path / f"a.{container}"
  soundfile.write(path, _tone(44_100), 44_100)
  result = files.read_audio(path) / files.FULL_SCALE
  assert abs(len(result) - 16_000) < 2_000  # MP3 pads
  assert np.sqrt(np.mean(result[4_000:12_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_channels_are_averaged(tmp_path):
  path = tmp_path / "a.wav"
  pcm = np.stack([np.full(100, 1_000), np.full(100, 3_000)], axis=1).astype(np.int16)
  soundfile.write(path, pcm, 16_000)
  np.testing.assert_array_equal(files.read_audio(path), np.full(100, 2_000))


def test_blocks_do_not_show(tmp_path, monkeypatch):
  path = tmp_path / "a.wav"
  soundfile.write(path, _noise(50_000), 44_100)
  whole = files.read_audio(path)
  monkeypatch.setattr(files, "_BLOCK_FRAMES", 1_017)
  assert np.abs(files.read_audio(path).astype(int) - whole).max() <= 1


def test_other_target_rate(tmp_path):
  path = tmp_path / "a.wav"
  soundfile.write(path, _tone(16_000), 16_000)
  assert abs(len(files.read_audio(path, sample_rate=8_000)) - 8_000) <= 1


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_full_scale_saturates_and_never_wraps(tmp_path, rate):
  path = tmp_path / "a.wav"
  square = np.sign(np.sin(2 * np.pi * 100 * (np.arange(rate) + 0.5) / rate)).astype("float32")
  soundfile.write(path, square * 1.5, rate, subtype="FLOAT")
  result = files.read_audio(path).astype(int)
  inside = np.sin(2 * np.pi * 100 * (np.arange(len(result)) + 0.5) / 16_000)
  steady = np.abs(inside) > 0.5
  assert (np.sign(result) == np.sign(inside))[steady].all()
  assert result.max() == 32767 and result.min() == -32768


def test_to_int16_rounds_and_saturates():
  steps = np.array([-2.0, -1.0, -0.6 / 32768, 0.0, 0.4 / 32768, 1.0, 2.0], "float32")
  np.testing.assert_array_equal(files.to_int16(steps), [-32768, -32768, -1, 0, 0, 32767, 32767])


def test_probe_states_the_header(tmp_path):
  path = tmp_path / "a.flac"
  soundfile.write(path, np.zeros((44_100, 2), np.int16), 44_100)
  info = files.probe_audio(path)
  assert (info.sample_rate, info.channels, info.seconds) == (44_100, 2, 1.0)


def test_an_hour_is_read_in_little_more_than_its_result(tmp_path):
  path = tmp_path / "hour.wav"
  with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as file:
    for _ in range(60):
      file.write(np.zeros(60 * 8_000, np.int16))
  tracemalloc.start()
  result = files.read_audio(path, sample_rate=4_000)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(result) == 3600 * 4_000
  assert peak < 1.5 * result.nbytes + 4e6


# --- bad files -------------------------------------------------------------------------------


def _write_truncated(path: pathlib.Path, container: str) -> None:
  whole = path.with_suffix(f".whole.{container}")
  soundfile.write(whole, _noise(40_000), 16_000, format=container)
  path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def _write_bad(kind: str, path: pathlib.Path) -> None:
  match kind:
    case "missing":
      pass
    case "directory":
      path.mkdir()
    case "empty":
      path.write_bytes(b"")
    case "text":
      path.write_text("Grüße: this is not audio\n")
    case "text_mp3":
      path.write_text("hello world\n" * 500)
    case "corrupt":
      path.write_bytes(bytes(np.random.default_rng(1).integers(0, 256, 4_000).astype(np.uint8)))
    case "header_only":
      path.write_bytes(b"RIFF\x24\x00\x00\x00WAVE")
    case "zero_samples":
      soundfile.write(path, np.zeros(0, np.int16), 16_000)
    case "nan" | "inf":
      samples = np.zeros(100_000, "float32")
      samples[80_000] = float(kind)
      soundfile.write(path, samples, 16_000, subtype="FLOAT")
    case "unscaled_float":
      soundfile.write(path, _noise(100).astype("float32"), 16_000, subtype="FLOAT")
    case "absurd_rate":
      soundfile.write(path, _noise(100), 16_000)
      data = bytearray(path.read_bytes())
      data[24:28] = struct.pack("<I", 7)
      path.write_bytes(data)
    case "no_channels":
      soundfile.write(path, _noise(100), 16_000)
      data = bytearray(path.read_bytes())
      data[22:24] = struct.pack("<H", 0)
      path.write_bytes(data)
    case "cut_off_wav":
      _write_truncated(path, "wav")
    case "cut_off_flac":
      _write_truncated(path, "flac")
    case "absurd_length":
      whole = path.with_suffix(".flac")
      soundfile.write(whole, _noise(1_000), 16_000)
      data = bytearray(whole.read_bytes())
      data[22:26] = b"\xff\xff\xff\xff"  # low 32 bits of STREAMINFO's 36-bit sample count
      path.write_bytes(data)


@pytest.mark.parametrize(
  ("kind", "says"),
  [
    ("missing", "does not exist"),
    ("directory", "is a directory"),
    ("empty", "0 bytes"),
    ("text", "is a text file"),
    ("text_mp3", "is a text file"),
    ("corrupt", "is not audio or is damaged"),
    ("header_only", "is not audio or is damaged"),
    ("zero_samples", "no audio samples"),
    ("nan", "NaN or infinite samples at 5.000 s"),
    ("inf", "NaN or infinite samples at 5.000 s"),
    ("unscaled_float", "expected ±1"),
    ("absurd_rate", "absurd header: 7 Hz"),
    ("no_channels", "is not audio or is damaged"),
    ("cut_off_wav", "is cut off: its header promises 80000 bytes"),
    ("cut_off_flac", "expected 2.5 s|is cut off"),
    ("absurd_length", "absurd header|expected 2684"),
  ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, kind, says):
  path = tmp_path / ("bad.mp3" if kind == "text_mp3" else "bad.wav")
  _write_bad(kind, path)
  with pytest.raises(UserError, match=says) as raised:
    files.read_audio(path)
  message = str(raised.value)
  assert str(path) in message and "\n" not in message and "; " in message


def test_a_streamed_wav_without_a_length_is_read(tmp_path):
  path = tmp_path / "pipe.wav"
  soundfile.write(path, _noise(1_000), 16_000)
  data = bytearray(path.read_bytes())
  data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
  path.write_bytes(data)
  np.testing.assert_array_equal(files.read_audio(path), _noise(1_000))


# --- cutting ---------------------------------------------------------------------------------


def _assert_covers(ranges, total, limit):
  assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
  assert ranges[-1][1] == total
  assert all(0 < stop - start <= limit for start, stop in ranges)


@pytest.mark.parametrize("limit", [4, 5, 100, 64_000])
@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("times", [1, 2, 7])
def test_cuts_at_the_limit_and_around_it(limit, extra, times):
  samples = _noise(limit * times + extra)
  ranges = files.split_audio(samples, limit)
  _assert_covers(ranges, len(samples), limit)
  if len(samples) <= limit:
    assert len(ranges) == 1
  joined = np.concatenate([samples[start:stop] for start, stop in ranges])
  np.testing.assert_array_equal(joined, samples)


def test_an_hour_is_covered_in_few_chunks():
  total, limit = 3600 * 16_000, 64_000
  samples = np.tile(_noise(48_017), total // 48_017 + 1)[:total]
  ranges = files.split_audio(samples, limit)
  _assert_covers(ranges, total, limit)
  assert len(ranges) <= total / (0.75 * limit) + 2
  assert ranges == files.split_audio(samples.copy(), limit)


def test_the_cut_lies_in_the_pause():
  samples = _noise(100_000)
  samples[55_000:58_000] = 0
  samples[51_000:52_000] //= 2  # a quieter word is no pause
  (_, cut), *_ = files.split_audio(samples, 64_000)
  assert 55_000 < cut < 58_000


def test_a_pause_outside_the_search_range_is_not_used():
  samples = _noise(100_000)
  samples[10_000:20_000] = 0
  assert files.split_audio(samples, 64_000, search_samples=8_000)[0][1] >= 56_000


def test_equally_quiet_places_give_the_longest_chunk():
  (_, cut), _ = files.split_audio(np.zeros(10_000, np.int16), 8_000, window_samples=100)
  assert 7_900 <= cut <= 8_000


def test_no_chunk_is_a_splinter():
  for extra in range(1, 50):
    ranges = files.split_audio(np.zeros(1_000 + extra, np.int16), 1_000, window_samples=10)
    assert min(stop - start for start, stop in ranges) >= 120


def test_no_samples_give_no_chunk():
  assert files.split_audio(np.zeros(0, np.int16), 100) == []


@pytest.mark.parametrize(
  "arguments",
  [
    {"max_samples": 3},
    {"max_samples": 10, "search_samples": 10},
    {"max_samples": 10, "search_samples": 1},
    {"max_samples": 10, "window_samples": 0},
  ],
)
def test_impossible_limits_are_refused(arguments):
  with pytest.raises(ValueError, match="must be"):
    files.split_audio(_noise(100), **arguments)


# --- contents and samples ----------------------------------------------------------------------


@pytest.mark.parametrize("container", ["wav", "flac", "ogg", "mp3"])
def test_a_files_content_is_read_as_the_file(tmp_path, container):
  path = tmp_path / f"a.{container}"
  soundfile.write(path, _tone(22_050), 22_050)
  result = files.decode_audio(path.read_bytes(), "record 3")
  np.testing.assert_array_equal(result, files.read_audio(path))
  with pytest.raises(UserError, match="^record 3 is empty"):
    files.decode_audio(b"", "record 3")
  with pytest.raises(UserError, match="^record 3 is not audio"):
    files.decode_audio(bytes(range(256)), "record 3")


@pytest.mark.parametrize("dtype", ["int16", "int64", "float32", "float64"])
def test_samples_become_what_their_file_would(tmp_path, dtype):
  tone = _tone(8_000)
  pcm = files.to_int16(tone)
  soundfile.write(tmp_path / "a.wav", pcm, 8_000)
  samples = pcm.astype(dtype) / (files.FULL_SCALE if "float" in dtype else 1)
  result = files.convert_samples(samples.astype(dtype), 8_000, "record")
  np.testing.assert_array_equal(result, files.read_audio(tmp_path / "a.wav"))


@pytest.mark.parametrize(
  ("samples", "rate", "says"),
  [
    (np.zeros(0), 16_000, "no audio samples"),
    (np.zeros((2, 9)), 16_000, r"shape \[2, 9\]"),
    (np.array([0, 40_000]), 16_000, "beyond int16"),
    (np.array([0.0, np.nan]), 16_000, "NaN or infinite samples at 0.000 s"),
    (np.array([0.0, 3_000.0]), 16_000, "expected ±1"),
    (np.zeros(9), 0, "0 Hz"),
  ],
)
def test_unusable_samples_are_named(samples, rate, says):
  with pytest.raises(UserError, match=f"^record 3 .*{says}"):
    files.convert_samples(samples, rate, "record 3")


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16)])
def test_an_mp3_that_states_its_length_is_not_cut_unnoticed(tmp_path, tag):
  path = tmp_path / "a.mp3"
  soundfile.write(path, _tone(16_000, 2.0), 16_000)
  data = tag + path.read_bytes()
  assert b"Info" in data[:200] or b"Xing" in data[:200]
  path.write_bytes(data)
  assert len(files.read_audio(path)) == pytest.approx(32_000, abs=2_000)
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match="cut off"):
    files.read_audio(path)
