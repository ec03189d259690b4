"""Slices of parameters in files equal the slices of the whole, and read no more than they must."""

import itertools
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from slm_jax.errors import UserError
from slm_jax.interop import safetensors_writer, stored_parameter
from slm_jax.interop.safetensors_file import SafetensorsFile
from slm_jax.interop.stored_parameter import (
  DamagedWeights,
  StoredParameter,
  StoredTensor,
  map_all,
)
from slm_jax.interop.torch_file import TorchFile

RNG = np.random.default_rng(0)


def in_memory(array: np.ndarray, place: str = "file: x", **chunk) -> StoredTensor:
  return StoredTensor(
    place=place, shape=array.shape, dtype=array.dtype.name, load=array.__getitem__, **chunk
  )


def slices_of(shape: tuple[int, ...]):
  """Every axis whole, its first half, one from its middle, and nothing."""
  choices = [(slice(0, n), slice(0, n // 2), slice(n // 2, n // 2 + 1), slice(n, n)) for n in shape]
  return itertools.product(*choices)


def same(parameter: StoredParameter, expected: np.ndarray) -> None:
  assert parameter.shape == expected.shape
  for index in slices_of(expected.shape):
    np.testing.assert_array_equal(parameter.read(index), expected[index], err_msg=str(index))
  np.testing.assert_array_equal(np.asarray(parameter), expected)


@pytest.fixture(params=[1, 200, 2**26], ids=["elements", "rows", "whole"])
def block_bytes(request, monkeypatch):
  monkeypatch.setattr(stored_parameter, "_BLOCK_BYTES", request.param)


def test_every_layout_is_turned_into_the_models(block_bytes):
  layers = RNG.normal(size=(3, 10, 12)).astype(np.float32)
  f32 = np.dtype(np.float32)
  forms = {
    "one": StoredParameter(shape=(10, 12), dtype=f32, tensors=(in_memory(layers[0]),)),
    "transposed": StoredParameter(
      shape=(10, 12), dtype=f32, tensors=(in_memory(layers[0].T.copy()),), transposed=True
    ),
    "vector": StoredParameter(shape=(12,), dtype=f32, tensors=(in_memory(layers[0, 0]),)),
    "apart": StoredParameter(
      shape=(3, 10, 12), dtype=f32, tensors=tuple(map(in_memory, layers)), layers="apart"
    ),
    "apart, transposed": StoredParameter(
      shape=(3, 10, 12),
      dtype=f32,
      tensors=tuple(in_memory(one.T.copy()) for one in layers),
      layers="apart",
      transposed=True,
    ),
    "axis 1": StoredParameter(
      shape=(3, 10, 12), dtype=f32, tensors=(in_memory(np.moveaxis(layers, 0, 1)),), layers="axis1"
    ),
  }
  expected = {"one": layers[0], "transposed": layers[0], "vector": layers[0, 0]}
  for name, parameter in forms.items():
    same(parameter, expected.get(name, layers))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layers", ["none", "apart", "axis1"])
def test_heads_apart_are_joined(block_bytes, axis, layers):
  """[D, N, H] becomes [D, N x H], and [N, H, D] becomes [N x H, D]; slices may cut a head."""
  joined = RNG.normal(size=(3, 12, 10) if axis == 0 else (3, 10, 12)).astype(np.float32)
  apart = joined.reshape((3, 3, 4, 10) if axis == 0 else (3, 10, 3, 4))
  tensors = {
    "none": (in_memory(apart[0]),),
    "apart": tuple(map(in_memory, apart)),
    "axis1": (in_memory(np.moveaxis(apart, 0, 1)),),
  }[layers]
  expected = joined[0] if layers == "none" else joined
  parameter = StoredParameter(
    shape=expected.shape,
    dtype=np.dtype(np.float32),
    tensors=tensors,
    layers=layers,
    heads=(axis, 4),
  )
  same(parameter, expected)


def test_chunks_that_can_only_be_read_whole_are_read_once(monkeypatch):
  tensor = in_memory(RNG.normal(size=(10, 5)), chunk=(4, 3))

  def pieces(rows: slice, columns: slice) -> list[tuple[int, int, int, int]]:
    blocks = tensor.blocks((rows, columns))
    return [(one.start, one.stop, other.start, other.stop) for (one, other), _ in blocks]

  monkeypatch.setattr(stored_parameter, "_BLOCK_BYTES", 1)
  everything = [(i, min(i + 4, 10), j, k) for i in (0, 4, 8) for j, k in ((0, 3), (3, 5))]
  assert pieces(slice(0, 10), slice(0, 5)) == everything
  assert pieces(slice(3, 9), slice(1, 3)) == [(3, 4, 1, 3), (4, 8, 1, 3), (8, 9, 1, 3)]
  # Room for two chunks of 96 bytes: as many columns as there are, then rows.
  monkeypatch.setattr(stored_parameter, "_BLOCK_BYTES", 200)
  assert pieces(slice(0, 10), slice(0, 5)) == [(0, 4, 0, 5), (4, 8, 0, 5), (8, 10, 0, 5)]


def test_a_chunk_that_is_kept_is_asked_for_in_blocks(monkeypatch):
  monkeypatch.setattr(stored_parameter, "_BLOCK_BYTES", 100)
  array = RNG.normal(size=(20, 8))
  tensor = in_memory(array, chunk=(10, 4), keeps_chunk=True)
  pieces = [place for place, _ in tensor.blocks((slice(0, 20), slice(0, 8)))]
  chunks = [(rows.start // 10, columns.start // 4) for rows, columns in pieces]
  assert chunks == sorted(chunks), "one chunk after the other"
  assert max((r.stop - r.start) * (c.stop - c.start) for r, c in pieces) * 8 <= 100
  same(StoredParameter(shape=(20, 8), dtype=array.dtype, tensors=(tensor,)), array)


@pytest.mark.parametrize("stored", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_values_are_cast_as_numpy_casts_them(stored, asked):
  array = RNG.normal(size=(5, 7)).astype(stored)
  parameter = StoredParameter(shape=(5, 7), dtype=np.dtype(asked), tensors=(in_memory(array),))
  read = parameter.read()
  assert read.dtype == np.dtype(asked)
  np.testing.assert_array_equal(read, array.astype(asked))
  assert parameter.astype("float32").read().dtype == np.float32
  scaled = StoredParameter(
    shape=(5, 7), dtype=np.dtype(asked), tensors=(in_memory(array),), scale=0.125
  )
  np.testing.assert_array_equal(scaled.read(), (array.astype("float32") * 0.125).astype(asked))


def test_damage_is_found_in_what_is_read_and_nowhere_else():
  arrays = [np.ones((4, 3), np.float32) for _ in range(4)]
  arrays[1][2, 0], arrays[3][0, 0] = np.nan, np.inf
  tensors = tuple(in_memory(array, f"file: {i}") for i, array in enumerate(arrays))
  stack = StoredParameter(
    shape=(4, 4, 3), dtype=np.dtype(np.float32), tensors=tensors, layers="apart"
  )
  with pytest.raises(DamagedWeights) as caught:
    stack.read()
  assert caught.value.places == ("file: 1", "file: 3")
  stack.read((slice(0, 4), slice(0, 2), slice(1, 3)))
  with pytest.raises(UserError, match="file: 1 holds values that are NaN"):
    stack.read((slice(0, 3), slice(2, 3), slice(0, 1)))
  with pytest.raises(UserError, match="2 tensors hold NaN .*file: 1, file: 3$"):
    rows = (slice(1, 2), slice(0, 4), slice(0, 3))
    map_all(lambda _, index: stack.read(index), {"a": None, "b": rows})


def test_a_value_too_large_for_the_type_asked_for_is_damage():
  tensor = in_memory(np.array([70000.0], np.float32))
  parameter = StoredParameter(shape=(1,), dtype=np.dtype(np.float32), tensors=(tensor,))
  assert parameter.read() == [70000]
  with pytest.raises(DamagedWeights):
    parameter.astype(np.float16).read()


def test_whole_numbers_are_no_weights():
  tensor = in_memory(np.arange(2, dtype=np.int32))
  with pytest.raises(UserError, match="file: x is int32, expected one of"):
    StoredParameter(shape=(2,), dtype=np.dtype(np.int32), tensors=(tensor,))


# Files: `os.preadv` is where their bytes come from.


class Counter:
  def __init__(self, monkeypatch):
    self.bytes, preadv = 0, os.preadv

    def counting(file, buffers, position):
      count = preadv(file, buffers, position)
      self.bytes += count
      return count

    monkeypatch.setattr(os, "preadv", counting)


def stored(folder: Path, kind: str, array: np.ndarray) -> StoredTensor:
  if kind == "safetensors":
    save_file({"other": np.zeros(3, np.float32), "x": array}, folder / "x.safetensors")
    return SafetensorsFile(folder / "x.safetensors").tensors["x"]
  tensor = torch.from_numpy(array)
  if kind == "transposed .bin":
    tensor = tensor.mT.contiguous().mT
  torch.save({"other": torch.zeros(3), "x": tensor}, folder / "x.bin")
  return TorchFile(folder / "x.bin").tensors["x"]


KINDS = ["safetensors", ".bin", "transposed .bin"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_a_file_reads_its_own_bytes(tmp_path, monkeypatch, kind):
  array = RNG.normal(size=(64, 8192)).astype(np.float32)
  tensor = stored(tmp_path, kind, array)
  parameter = StoredParameter(shape=array.shape, dtype=array.dtype, tensors=(tensor,))
  if kind == "transposed .bin":
    # There the long axis lies along columns of 256 bytes, which are read with what is between them.
    indices = [(slice(0, 64), slice(1024, 2048)), (slice(0, 64), slice(0, 1))]
  else:
    indices = [(slice(8, 16), slice(0, 8192)), (slice(3, 9), slice(2048, 4096))]
  for index in indices:
    counter = Counter(monkeypatch)
    part = parameter.read(index)
    np.testing.assert_array_equal(part, array[index])
    assert counter.bytes == part.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_every_slice_of_a_file_is_that_of_the_array(tmp_path, block_bytes, kind):
  array = RNG.normal(size=(3, 6, 5)).astype(np.float32)
  parameter = StoredParameter(
    shape=array.shape, dtype=array.dtype, tensors=(stored(tmp_path, kind, array),)
  )
  same(parameter, array)


def test_a_slice_takes_no_more_memory_than_itself_and_a_block(tmp_path, monkeypatch):
  import tracemalloc

  monkeypatch.setattr(stored_parameter, "_BLOCK_BYTES", 2**20)
  array = np.ones((4096, 2048), np.float32)
  tensor = stored(tmp_path, "safetensors", array)
  parameter = StoredParameter(
    shape=array.shape[::-1], dtype=np.dtype(ml_dtypes.bfloat16), tensors=(tensor,), transposed=True
  )
  tracemalloc.start()
  part = parameter.read((slice(0, 1024), slice(0, 4096)))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert part.nbytes == 8 * 2**20 and peak < part.nbytes + 4 * 2**20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_what_the_formats_own_library_writes(tmp_path, dtype):
  arrays = {f"layer.{i}": RNG.normal(size=(4, i)).astype(dtype) for i in range(5)}
  arrays["größe"] = np.ones((), dtype)
  arrays["transposed"] = RNG.normal(size=(7, 3)).astype(dtype).T
  own = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  own["größe"] = arrays["größe"]
  save_file(own, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
  safetensors_writer.write_tensors(tmp_path / "ours", dict(sorted(arrays.items())))
  theirs = (tmp_path / "theirs.safetensors").read_bytes()
  assert (tmp_path / "ours" / "model.safetensors").read_bytes() == theirs
