"""Headers that lie, and files that are cut, are one line that names the file."""

import json
import re
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from slm_jax.errors import UserError
from slm_jax.interop.safetensors_file import SafetensorsFile

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_of(header, content: bytes = bytes(24)) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + content


def test_every_type_of_the_library_is_known(tmp_path):
  names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
  names += ["uint64", "uint32", "uint16", "uint8", "bool"]
  arrays = {name: np.arange(6).reshape(2, 3).astype(name) for name in names}
  arrays |= {"scalar": np.float32(3.5), "empty": np.zeros((0, 5), np.float16)}
  (tmp_path / "x").write_bytes(save({k: np.asarray(v) for k, v in arrays.items()}))
  tensors = SafetensorsFile(tmp_path / "x").tensors
  assert tensors.keys() == arrays.keys()
  for name, array in arrays.items():
    whole = tuple(slice(0, size) for size in array.shape)
    read = tensors[name].load(whole)
    assert read.dtype == array.dtype and tensors[name].dtype == array.dtype.name
    np.testing.assert_array_equal(read, array)


def entry(**changes):
  return {"a": GOOD | changes}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "header goes beyond"),
    (b"\x01\x02", "header goes beyond"),
    (struct.pack("<Q", 2**63) + b"{}", "header goes beyond"),
    (struct.pack("<Q", 3) + b"{}", "header goes beyond"),
    (file_of(b"{"), "Expecting"),
    (file_of(b"[" * 100_000), "nested too deeply"),
    (file_of(b'{"a":' * 100_000), "nested too deeply"),
    (file_of(b"\xff\xfe"), "decode"),
    (file_of([1]), "is a JSON list"),
    (file_of({"a": 3}), "has not dtype"),
    (file_of({"a": {"dtype": "F32", "shape": [2, 3]}}), "has not dtype"),
    (file_of(entry(dtype="F8_E4M3")), "F8_E4M3"),
    (file_of(entry(dtype=["F32"])), "of type"),
    (file_of(entry(shape=[2, -3])), "has the shape"),
    (file_of(entry(shape=[2, 3.0])), "has the shape"),
    (file_of(entry(shape=[True, 6])), "has the shape"),
    (file_of(entry(shape=[1] * 40 + [6])), "has the shape"),
    (file_of(entry(shape=[2**40, 2**40])), "of shape"),
    (file_of(entry(shape=[0, 2**62], data_offsets=[0, 0]), b""), "of shape"),
    (file_of(entry(shape=[6, 3])), "of shape"),
    (file_of(entry(data_offsets=[24, 0])), "of shape"),
    (file_of(entry(data_offsets=[0, 24, 48])), "data_offsets"),
    (file_of(entry(data_offsets=[-8, 16])), "data_offsets"),
    (file_of(entry(data_offsets=[4, 28]), bytes(28)), "starts at byte 4"),
    (file_of({"a": GOOD, "b": GOOD}), "starts at byte 0"),
    (file_of(entry(), bytes(23)), "of shape"),
    (file_of(entry(), bytes(25)), "24 bytes, but 25"),
    (file_of(json.dumps(entry()).replace("}}", '}, "a": {}}').encode()), "twice"),
  ],
  ids=range(28),
)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(tmp_path, content, message):
  path = tmp_path / "model.safetensors"
  path.write_bytes(content)
  pattern = f"{re.escape(str(path))} is not a readable safetensors file: .*{message}"
  with pytest.raises(UserError, match=pattern) as caught:
    SafetensorsFile(path)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_good_file_is_good_and_one_cut_after_opening_is_named(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(file_of(entry()))
  tensor = SafetensorsFile(path).tensors["a"]
  whole = (slice(0, 2), slice(0, 3))
  assert tensor.load(whole).tolist() == [[0.0] * 3] * 2
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match="x: a cannot be read: it ends at byte"):
    tensor.load(whole)
  path.unlink()
  with pytest.raises(UserError, match="x: a cannot be read: .*No such file"):
    tensor.load(whole)
