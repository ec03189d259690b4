"""Files of weights that are hostile, damaged or cut are refused by name, and nothing of them runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from slm_jax.errors import UserError
from slm_jax.interop.torch_file import TorchFile

LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Reduced:
  """Pickles as a call of `function`, then state, items and pairs, as `__reduce__` has them."""

  def __init__(self, function, *arguments, state=None, pairs=None):
    self.reduced = (function, arguments, state, None, pairs)

  def __reduce__(self):
    return self.reduced


class Identity:
  """Pickles as a persistent id."""

  def __init__(self, *identity):
    self.identity = identity


def dump(value, protocol: int = 2) -> bytes:
  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      return obj.identity if isinstance(obj, Identity) else None

  buffer = io.BytesIO()
  Pickler(buffer, protocol).dump(value)
  return buffer.getvalue()


def write_zip(path: Path, entries: dict, compression: int = zipfile.ZIP_STORED) -> Path:
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, content in entries.items():
      if content is not None:
        archive.writestr(name, content)
  return path


def write(path: Path, data: bytes, zipped: bool = True, numel: int = 4, names=("0",)) -> Path:
  """A file whose object pickle is `data`, with fp32 storages of `numel` elements."""
  storage = np.arange(numel, dtype="<f4").tobytes()
  if zipped:
    write_zip(path, {"root/data.pkl": data, **{f"root/data/{x}": storage for x in names}})
  else:
    start = [dump(x) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    counted = numel.to_bytes(8, "little") + storage
    path.write_bytes(b"".join([*start, data, dump(list(names)), *[counted for _ in names]]))
  return path


STORAGE = Identity("storage", torch.FloatStorage, "0", "cpu", 4)
rebuild = torch._utils._rebuild_tensor_v2


def tensor(offset=0, size=(4,), stride=(1,), storage=STORAGE):
  return Reduced(rebuild, storage, offset, size, stride, False, OrderedDict())


@LAYOUTS
def test_files_made_by_hand_are_read(tmp_path, zipped):
  """So that the refusals below are of what they change, not of how these files are made."""
  storage = STORAGE if zipped else Identity(*STORAGE.identity, None)
  state = {"a": tensor(1, (2,), (2,), storage), "b": tensor(0, (2, 2), (1, 2), storage)}
  file = TorchFile(write(tmp_path / "a.bin", dump(state), zipped))
  assert file.read("a").tolist() == [1, 3] and file.read("b").tolist() == [[0, 2], [1, 3]]


class Ours:
  pass


def with_state(state):
  """A plain instance with state: NEWOBJ and BUILD."""
  ours = Ours()
  ours.__dict__.update(state)
  return ours


class Subclass(dict):
  pass


GLOBAL_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOSTILE = {
  "system": (lambda touch: dump({"a": Reduced(os.system, touch)}), "posix.system"),
  "system-4": (lambda touch: dump({"a": Reduced(os.system, touch)}, 4), "posix.system"),
  "system at the top": (lambda touch: dump(Reduced(os.system, touch)), "posix.system"),
  "eval": (
    lambda touch: dump({"a": Reduced(eval, f"__import__('os').system({touch!r})")}),
    "builtin.*eval",
  ),
  "load from bytes": (
    lambda touch: dump(
      {"a": Reduced(torch.storage._load_from_bytes, dump(Reduced(os.system, touch)))}
    ),
    "torch.storage._load_from_bytes",
  ),
  "untyped": (lambda touch: dump({"a": torch.UntypedStorage}), "torch.storage.UntypedStorage"),
  "getattr": (
    lambda touch: dump({"a": Reduced(getattr, Reduced(__import__, "os"), "system")}),
    "builtin.*(getattr|__import__)",
  ),
  "only named": (lambda touch: dump({"a": os.system}), "posix.system"),
  "as a hook": (
    lambda touch: dump(
      {"a": Reduced(rebuild, STORAGE, 0, (4,), (1,), False, Reduced(os.system, touch))}
    ),
    "posix.system",
  ),
  "as a storage": (
    lambda touch: dump({"a": tensor(storage=Reduced(os.system, touch))}),
    "posix.system",
  ),
  "as an identity": (
    lambda touch: dump({"a": Identity("storage", Reduced(os.system, touch), "0", "cpu", 4)}),
    "posix.system",
  ),
  "as a key": (
    lambda touch: dump(Reduced(OrderedDict, pairs=iter([(Reduced(os.system, touch), 1)]))),
    "posix.system",
  ),
  "as state": (
    lambda touch: dump(Reduced(OrderedDict, state={"x": Reduced(os.system, touch)})),
    "posix.system",
  ),
  "instance": (lambda touch: dump({"a": with_state({"b": 1})}, 2), "copyreg|Ours"),
  "dict subclass": (lambda touch: dump(Subclass(a=1)), "Subclass"),
  "numpy": (lambda touch: dump({"a": np.zeros(3)}), "numpy"),
  "two dots": (lambda touch: b"\x80\x02ctorch\n_utils._rebuild_tensor_v3\n.", "_rebuild_tensor_v3"),
  "call of a result": (
    lambda touch: b"\x80\x02}X\x01\x00\x00\x00aX\x06\x00\x00\x00systemX\x01\x00\x00\x00x\x85Rs.",
    "calls a str",
  ),
  "call of a storage type": (lambda touch: b"\x80\x02ctorch\nFloatStorage\n)R.", "calls a "),
  "state on a function": (
    lambda touch: b"\x80\x02" + GLOBAL_TENSOR + b"}X\x08\x00\x00\x00__code__K\x01sb.",
    "sets state on a Call",
  ),
  "slots on a type": (
    lambda touch: b"\x80\x02ctorch\nFloatStorage\nN}X\x04\x00\x00\x00nameK\x01s\x86b.",
    "sets state on a ",
  ),
  "state on a dict": (
    lambda touch: b"\x80\x02}}X\x01\x00\x00\x00xK\x01sb.",
    "sets state on a dict",
  ),
  "items of a type": (
    lambda touch: b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00xK\x01s.",
    "sets items of a Call",
  ),
  "items of a list": (lambda touch: b"\x80\x02]K\x00K\x01s.", "sets items of a list"),
  "appended to a dict": (lambda touch: b"\x80\x02}K\x01a.", "appends to a dict"),
  "a tuple as key": (lambda touch: b"\x80\x02})K\x01s.", "tuple as a key"),
  "extension": (lambda touch: b"\x80\x02\x82\x01.", "EXT1"),
  "instance opcode": (lambda touch: b"(S'x'\niposix\nsystem\n.", "STRING|INST"),
  "object opcode": (lambda touch: b"\x80\x02(cposix\nsystem\nU\x01xo.", "posix.system"),
  "text identity": (lambda touch: b"P0\n.", "PERSID"),
  "far memo": (lambda touch: b"\x80\x02}r\xff\xff\xff\xffh\x07.", "damaged near byte"),
  "no mark": (lambda touch: b"\x80\x02}u.", "damaged near byte"),
  "empty stack": (lambda touch: b"\x80\x02.", "other than one object"),
  "long text": (lambda touch: b"\x80\x02X\xff\xff\xff\x7fabc.", "not a readable"),
  "no dict": (lambda touch: dump([tensor()]), "holds a list"),
  "a number": (lambda touch: dump({"a": tensor(), "epoch": 3}), "entry epoch is of type int"),
  "nested": (
    lambda touch: dump({"state_dict": {"a": tensor()}}),
    "entry state_dict is of type dict",
  ),
  "a key of another kind": (lambda touch: dump({3: tensor()}), "entry 3"),
}


@LAYOUTS
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, zipped, case):
  make, message = HOSTILE[case]
  proof, path = tmp_path / "proof", tmp_path / "a.bin"
  write(path, make(f"touch {proof}"), zipped)
  with pytest.raises(UserError, match=message) as caught:
    TorchFile(path)
  assert str(path) in str(caught.value)
  assert not proof.exists()


def test_the_proof_of_the_hostile_pickles_would_be_written(tmp_path):
  """Python's unpickler runs them: the test above can fail."""
  make, _ = HOSTILE["system"]
  pickle.loads(make(f"touch {tmp_path / 'proof'}"))
  assert (tmp_path / "proof").exists()


def test_a_bare_pickle_is_refused_at_its_first_global(tmp_path):
  path = tmp_path / "a.bin"
  path.write_bytes(pickle.dumps(Reduced(os.system, f"touch {tmp_path / 'proof'}")))
  with pytest.raises(UserError, match="posix.system"):
    TorchFile(path)
  assert not (tmp_path / "proof").exists()


@LAYOUTS
@pytest.mark.parametrize(
  ("offset", "size", "stride"),
  [
    (0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (5, (), ()), (4, (1,), (1,)),
    (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (-1,), (1,)), (0, (-1, -4), (1, 1)),
    (0, (10**12,), (0,)), (0, (2, 4), (0, 1)), (0, (2**62, 4), (2**62, 1)), (2**64, (1,), (1,)),
    (0, (2,), (2**64,)), (0, (0, 10**12), (1, 1)), (9, (0,), (1,)),
    (0, (2, 2), (1,)), (0, (1,) * 40, (1,) * 40), (0, (1.0,), (1,)), (0, ("4",), (1,)),
    (0, (True,), (1,)), (True, (1,), (1,)), (0, (4,), (None,)),
  ],
  ids=str,
)  # fmt: skip
def test_a_view_outside_of_its_storage_is_named(tmp_path, zipped, offset, size, stride):
  storage = STORAGE if zipped else Identity(*STORAGE.identity, None)
  state = {"good": tensor(storage=storage), "bad.weight": tensor(offset, size, stride, storage)}
  with pytest.raises(UserError, match="tensor bad.weight "):
    TorchFile(write(tmp_path / "a.bin", dump(state), zipped))


def refused_identities():
  yield ("module", torch.FloatStorage, "0", "cpu", 4)
  yield ("storage", "torch.FloatStorage", "0", "cpu", 4)
  yield ("storage", torch.FloatStorage, 0, "cpu", 4)
  yield ("storage", torch.FloatStorage, "0", "cpu", "4")
  yield ("storage", torch.FloatStorage, "0", "cpu", 4, ("1", 0, 2))
  yield ("storage", torch.FloatStorage, "0", "cpu", -4)
  yield ("storage", torch.FloatStorage, "0", "cpu", 2**40)
  yield ("storage", torch.DoubleStorage, "0", "cpu", 4)
  yield ("storage", torch.FloatStorage, "../../0", "cpu", 4)
  yield ("storage",)
  yield "storage"


@LAYOUTS
@pytest.mark.parametrize("identity", list(refused_identities()), ids=str)
def test_a_storage_that_is_not_as_declared_is_refused(tmp_path, zipped, identity):
  class Single(Identity):
    def __init__(self):
      self.identity = identity

  state = {"a": tensor(storage=Single())}
  with pytest.raises(UserError, match="storage|data/|end"):
    TorchFile(write(tmp_path / "a.bin", dump(state), zipped))


def test_one_storage_is_declared_once(tmp_path):
  other = Identity("storage", torch.IntStorage, "0", "cpu", 4)
  state = {"a": tensor(), "b": tensor(storage=other)}
  with pytest.raises(UserError, match="twice"):
    TorchFile(write(tmp_path / "a.bin", dump(state)))


@pytest.mark.parametrize("names", [(), ("1",), ("0", "1"), ("0", "0")], ids=str)
def test_the_legacy_list_of_storages_is_the_pickles(tmp_path, names):
  path = write(tmp_path / "a.bin", dump({"a": tensor()}), zipped=False, names=names)
  with pytest.raises(UserError, match="lists"):
    TorchFile(path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"root/data/0": bytes(17)}, "data/0 has 17, expected 16"),
    ({"root/data/0": None}, "data/0 is missing"),
    ({"root/data.pkl": None}, "0 entries named data.pkl"),
    ({"b/data.pkl": b"N."}, "2 entries named data.pkl"),
    ({"root/data.pkl": b"]" * 2**24 + b"."}, "more than 16777216"),
    ({"root/byteorder": b"middle"}, "byteorder"),
  ],
  ids=["longer", "no storage", "no pickle", "two pickles", "large pickle", "byteorder"],
)
def test_a_zip_with_other_entries_is_refused(tmp_path, changes, message):
  entries = {"root/data.pkl": dump({"a": tensor()}), "root/data/0": bytes(16), **changes}
  with pytest.raises(UserError, match=message):
    TorchFile(write_zip(tmp_path / "a.bin", entries))


def test_a_compressed_or_doubled_zip_entry_is_refused(tmp_path):
  entries = {"root/data.pkl": dump({"a": tensor()}), "root/data/0": bytes(16)}
  with pytest.raises(UserError, match="compressed"):
    TorchFile(write_zip(tmp_path / "a.bin", entries, zipfile.ZIP_DEFLATED))
  path = write_zip(tmp_path / "b.bin", entries)
  with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
    archive.writestr("root/data/0", bytes(16))
  with pytest.raises(UserError, match="two entries"):
    TorchFile(path)


def saved(state: dict, zipped: bool) -> bytes:
  buffer = io.BytesIO()
  torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
  return buffer.getvalue()


def small_state() -> dict:
  return {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.nn.Parameter(torch.ones(2).half())}


@LAYOUTS
def test_a_file_cut_anywhere_is_a_users_error(tmp_path, zipped):
  whole = saved(small_state(), zipped)
  path = tmp_path / "cut.bin"
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    with pytest.raises(UserError, match="cut.bin"):
      TorchFile(path)
      pytest.fail(f"{length} of {len(whole)} bytes were read")
  path.write_bytes(whole)
  assert TorchFile(path).read("a").tolist() == [[0, 3], [1, 4], [2, 5]]


@LAYOUTS
def test_a_file_with_any_byte_changed_is_read_or_a_users_error(tmp_path, zipped):
  whole = saved(small_state(), zipped)
  path = tmp_path / "changed.bin"
  rng = np.random.default_rng(0)
  refused = 0
  for position in range(len(whole)):
    for byte in {whole[position] ^ 0xFF, int(rng.integers(256))}:
      path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
      try:
        file = TorchFile(path)
        for name in file.tensors:
          file.read(name)
      except UserError:
        refused += 1
  assert refused > 100


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
  path = tmp_path / "a.bin"
  path.write_bytes(saved({"a": torch.zeros(4000)}, True))
  file = TorchFile(path)
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(UserError, match="a.bin: a cannot be read"):
    file.read("a")
  path.unlink()
  with pytest.raises(UserError, match="a.bin: a cannot be read"):
    file.read("a")
