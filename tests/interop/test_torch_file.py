"""What torch.save writes is read bitwise, from a file and from a model folder."""

import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn
from safetensors.numpy import load_file

from slm_jax.errors import UserError
from slm_jax.interop import load_language_model
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.safetensors_folder import TensorFolder
from slm_jax.interop.torch_file import TorchFile
from slm_jax.models.t5 import T5, T5Config

LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
LM = T5Config(
  vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12,
  num_encoder_layers=1, num_decoder_layers=2,
)  # fmt: skip


def save(state, path: Path, zipped: bool = True, **options) -> Path:
  torch.save(state, path, _use_new_zipfile_serialization=zipped, **options)
  return path


def assert_same(path: Path, state: dict) -> None:
  file = TorchFile(path)
  assert list(file.tensors) == list(state)
  for name, tensor in state.items():
    array = file.read(name)
    tensor = tensor.detach()
    assert array.shape == file.tensors[name].shape == tuple(tensor.shape), name
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch."), name
    assert array.flags.c_contiguous and array.flags.writeable, name
    # Bytes, so that bfloat16 needs no second reader and NaN equals itself.
    expected = tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    assert array.tobytes() == expected.numpy().tobytes(), name


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_dtype(tmp_path, zipped, protocol):
  values = torch.tensor([0.0, -1.5, 3.25, 1e-3, float("inf"), float("nan")])
  floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
  integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
  state = {f"f.{dtype}": values.to(dtype) for dtype in floats}
  state |= {f"i.{dtype}": torch.arange(7).to(dtype) for dtype in integers}
  state["bool"] = torch.tensor([True, False, True])
  assert_same(save(state, tmp_path / "a.bin", zipped, pickle_protocol=protocol), state)


@LAYOUTS
def test_every_view(tmp_path, zipped):
  base = torch.randn(6, 5, 4)
  state = {
    "base": base,
    "transposed": base.mT,
    "permuted": base.permute(2, 0, 1),
    "sliced": base[1:5, ::2, 1],
    "one": base[3, 2, 1],
    "wide": torch.randn(1, 7)[:, 2:5],
    "open stride": torch.randn(3).as_strided((1, 3), (10**12, 1)),
    "empty": torch.zeros(0, 512),
    "no stride": base[:, :0],
    "bf16": torch.randn(4, 3).bfloat16().T,
    "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    "tied": torch.nn.Parameter(base[0]),
  }
  assert_same(save(state, tmp_path / "a.bin", zipped), state)


@LAYOUTS
def test_a_modules_state_dict_with_metadata(tmp_path, zipped):
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  state = module.state_dict()
  assert isinstance(state, OrderedDict) and hasattr(state, "_metadata")
  assert_same(save(state, tmp_path / "a.bin", zipped), state)


def test_a_file_from_a_big_endian_machine(tmp_path):
  state = {"a": torch.randn(5), "b": torch.randn(4).bfloat16()}
  path = save(state, tmp_path / "a.bin")
  with zipfile.ZipFile(path) as archive:
    entries = {name: archive.read(name) for name in archive.namelist()}
  entries["a/byteorder"] = b"big"
  entries["a/data/0"] = np.frombuffer(entries["a/data/0"], "<u4").astype(">u4").tobytes()
  entries["a/data/1"] = np.frombuffer(entries["a/data/1"], "<u2").astype(">u2").tobytes()
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in entries.items():
      archive.writestr(name, content)
  assert_same(path, state)


@LAYOUTS
def test_a_tensor_is_read_without_the_rest_of_the_file(tmp_path, zipped):
  state = {"large": torch.zeros(48 * 2**20, dtype=torch.uint8), "small": torch.arange(5.0)}
  path = save(state, tmp_path / "a.bin", zipped)
  tracemalloc.start()
  np.testing.assert_array_equal(TorchFile(path).read("small"), np.arange(5))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 40 * 2**20, "the legacy layout looks for pickles in the first 16 MiB"


def test_torch_is_not_imported(tmp_path):
  path = save({"a": torch.arange(3.0)}, tmp_path / "a.bin")
  code = f"""
import sys
sys.modules["torch"] = None
from slm_jax.interop.torch_file import TorchFile
assert TorchFile({str(path)!r}).read("a").tolist() == [0, 1, 2]
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Folders.


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("lm")
  tokens = np.zeros((1, 2), np.int32)
  boxed = jax.jit(T5(LM).init)(jax.random.key(0), tokens, tokens == 0, tokens)
  save_language_model(folder, LM, jax.tree.map(np.asarray, nn.unbox(boxed)["params"]))
  return folder


def torch_state(folder: Path) -> dict[str, torch.Tensor]:
  return {
    name: torch.from_numpy(array) for name, array in load_file(folder / "model.safetensors").items()
  }


def write_shards(state: dict, folder: Path) -> None:
  weight_map = {name: f"pytorch_model-{i % 3}.bin" for i, name in enumerate(state)}
  for shard in sorted(set(weight_map.values())):
    save({name: state[name] for name in state if weight_map[name] == shard}, folder / shard)
  index = {"metadata": {}, "weight_map": weight_map}
  (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["zip", "legacy", "shards"])
def test_a_t5_folder_of_bin_files_loads_as_its_safetensors(lm_folder, tmp_path, kind):
  state = torch_state(lm_folder)
  # As PyTorch's own model lists them: tied copies, and kernels that are views.
  state["encoder.embed_tokens.weight"] = state["shared.weight"]
  state = {name: x.T.contiguous().T if x.ndim == 2 else x for name, x in state.items()}
  (tmp_path / "config.json").write_bytes((lm_folder / "config.json").read_bytes())
  if kind == "shards":
    write_shards(state, tmp_path)
  else:
    save(state, tmp_path / "pytorch_model.bin", kind == "zip")
  expected, loaded = load_language_model(lm_folder), load_language_model(tmp_path)
  assert loaded.config == expected.config
  assert jax.tree.structure(loaded.params) == jax.tree.structure(expected.params)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
  if kind == "shards":
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(UserError, match="lacks 1 of 3 shards .*pytorch_model-1.bin"):
      load_language_model(tmp_path)


@pytest.mark.parametrize("family", ["T5", "MT5", "UMT5"])
def test_a_published_folder_without_model_type(tmp_path, family):
  """As umT5 is published: the architecture alone, and weights in pytorch_model.bin."""
  architecture = f"{family}ForConditionalGeneration"
  config = getattr(transformers, f"{family}Config")(
    vocab_size=32, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2
  )
  torch.manual_seed(0)
  model = getattr(transformers, architecture)(config)
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter)
  both, bare = tmp_path / "both", tmp_path / "bare"
  model.save_pretrained(both)
  bare.mkdir()
  save(model.state_dict(), bare / "pytorch_model.bin")
  raw = json.loads((both / "config.json").read_text())
  del raw["model_type"]
  (bare / "config.json").write_text(json.dumps({**raw, "architectures": [architecture]}))
  expected, loaded = load_language_model(both), load_language_model(bare)
  assert loaded.config == expected.config
  assert loaded.config.per_layer_relpos == (family == "UMT5")
  jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
  (bare / "config.json").write_text(json.dumps({**raw, "architectures": ["GPT2LMHeadModel"]}))
  with pytest.raises(UserError, match="model_type is None.*GPT2LMHeadModel"):
    load_language_model(bare)


def test_safetensors_win_and_a_folder_without_weights_names_all_four(lm_folder, tmp_path):
  (tmp_path / "model.safetensors").write_bytes((lm_folder / "model.safetensors").read_bytes())
  (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
  assert TensorFolder(tmp_path).tensors["shared.weight"].shape == (32, 8)
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(UserError, match="pytorch_model.bin is not a readable"):
    TensorFolder(tmp_path)
  (tmp_path / "pytorch_model.bin").unlink()
  with pytest.raises(UserError) as caught:
    TensorFolder(tmp_path)
  for name in ("model.safetensors", "pytorch_model.bin"):
    assert f" {name}" in str(caught.value) and f"{name}.index.json" in str(caught.value)


def test_floats_of_a_bin_are_checked_as_those_of_safetensors(tmp_path):
  state = {
    "double": torch.tensor([0.1, -2.0], dtype=torch.float64),
    "too large": torch.tensor([1e300], dtype=torch.float64),
    "nan": torch.tensor([float("nan")]),
    "whole": torch.tensor([1, 2]),
  }
  save(state, tmp_path / "pytorch_model.bin")
  folder = TensorFolder(tmp_path)
  double = folder.parameter("double").read()
  assert double.dtype == np.float32
  np.testing.assert_array_equal(double, np.array([0.1, -2.0], np.float32))
  assert folder.parameter("double", "bfloat16").read().dtype.name == "bfloat16"
  for name, message in (("too large", "NaN or inf"), ("nan", "NaN or inf"), ("whole", "int64")):
    with pytest.raises(UserError, match=f"pytorch_model.bin: {name} .*{message}"):
      folder.parameter(name).read()


@pytest.mark.parametrize(
  "shard", ["../a.bin", "/etc/a.bin", "a.safetensors", "a.json", 3, None, []]
)
def test_an_index_reaches_no_further_than_its_folder(tmp_path, shard):
  save({"a": torch.zeros(1)}, tmp_path / "a.bin")
  folder = tmp_path / "model"
  folder.mkdir()
  index = {"weight_map": {"a": shard}}
  (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="names the shard"):
    TensorFolder(folder)
