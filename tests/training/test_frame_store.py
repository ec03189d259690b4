"""Frames in files, found by the hash of their audio."""

import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.training import frame_store
from slm_jax.training.frame_store import FrameStore, FrameWriter, audio_key

WIDTH = 3


def utterance(seed: int) -> tuple[bytes, np.ndarray]:
  rng = np.random.default_rng(seed)
  audio = rng.integers(-3000, 3000, 50 + seed).astype(np.int16)
  return audio_key(audio), rng.normal(size=(seed % 5, WIDTH)).astype(np.float32)


def opened(folder) -> FrameStore:
  return FrameStore(folder, width=WIDTH, dtype=np.dtype(np.float32))


def write(folder, seeds) -> None:
  writer = FrameWriter(folder)
  for seed in seeds:
    writer.write(*utterance(seed))
  writer.close()


def test_what_was_written_is_read_over_several_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(frame_store, "PART_RECORDS", 7)
  write(tmp_path, range(20))
  write(tmp_path, range(20, 25))
  store = opened(tmp_path)
  assert len(store) == 25 and len(list(tmp_path.glob("*.array_record"))) == 4
  order = np.random.default_rng(0).permutation(25)
  for seed, frames in zip(order, store.read([utterance(s)[0] for s in order]), strict=True):
    np.testing.assert_array_equal(frames, utterance(seed)[1])


def test_bfloat16_comes_back_as_it_is(tmp_path):
  import ml_dtypes

  key, frames = utterance(4)
  writer = FrameWriter(tmp_path)
  writer.write(key, frames.astype(ml_dtypes.bfloat16))
  writer.close()
  [read] = FrameStore(tmp_path, width=WIDTH, dtype=np.dtype(ml_dtypes.bfloat16)).read([key])
  assert read.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(read, frames.astype(ml_dtypes.bfloat16))


def test_an_absent_key_is_named(tmp_path):
  write(tmp_path, range(3))
  store, absent = opened(tmp_path), utterance(9)[0]
  assert absent not in store and utterance(1)[0] in store
  with pytest.raises(KeyError) as raised:
    store.read([utterance(1)[0], absent])
  assert raised.value.args == (absent,)


def test_a_part_that_was_not_finished_is_not_read(tmp_path):
  write(tmp_path, range(3))
  writer = FrameWriter(tmp_path)
  writer.write(*utterance(8))  # and killed here
  assert len(opened(tmp_path)) == 3


def test_one_sample_changed_is_another_key():
  audio = np.zeros(100, np.int16)
  other = audio.copy()
  other[50] = 1
  assert len({audio_key(audio), audio_key(other), audio_key(audio[:-1])}) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "keys"])
def test_a_damaged_part_is_named(tmp_path, damage):
  write(tmp_path, range(30))
  [path] = tmp_path.glob("*.array_record")
  content = bytearray(path.read_bytes())
  if damage == "cut":
    path.write_bytes(content[: len(content) // 2])
  elif damage == "flip":
    start = content.find(utterance(4)[1].tobytes()[:8])
    assert start > 0
    content[start] ^= 255
    path.write_bytes(content)
  else:
    keys = path.with_suffix(".npy")
    keys.write_bytes(keys.read_bytes()[:-16])
  with pytest.raises(UserError, match=path.name):
    opened(tmp_path).read([utterance(seed)[0] for seed in range(30)])
