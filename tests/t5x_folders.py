"""T5X checkpoints of tiny models, built from TensorStore and msgpack alone."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import tensorstore as ts
from flax import linen as nn
from flax import traverse_util

from slm_jax.interop.stored_parameter import map_all
from slm_jax.interop.t5x_checkpoint import open_t5x_language_model
from slm_jax.models.t5 import T5, T5Config

# Every axis has a length of its own: 32 wide, 3 heads of 8, 4 buckets, 2 and 5 layers.
CONFIG = T5Config(
  vocab_size=96,
  emb_dim=32,
  num_heads=3,
  head_dim=8,
  mlp_dim=48,
  num_encoder_layers=2,
  num_decoder_layers=5,
  relpos_num_buckets=4,
)
UMT5 = dataclasses.replace(CONFIG, per_layer_relpos=True)
T5_1_0 = dataclasses.replace(CONFIG, mlp_activations=("relu",), logits_via_embedding=True)
WO = "decoder/layers_3/mlp/wo/kernel"


@functools.cache
def random_leaves(config: T5Config, dtype: str = "float32") -> dict[str, np.ndarray]:
  """Parameters by path, of which no two are equal."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  boxed = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens == 0, tokens)
  rng = np.random.default_rng(0)
  leaves = traverse_util.flatten_dict(nn.unbox(boxed)["params"], sep="/")
  return {name: rng.normal(size=leaf.shape).astype(dtype) for name, leaf in leaves.items()}


def random_params(config: T5Config, dtype: str = "float32") -> dict:
  return traverse_util.unflatten_dict(random_leaves(config, dtype), sep="/")


def split_heads(name: str, array: np.ndarray) -> np.ndarray:
  """[..., D, 24] -> [..., D, 3, 8], and for the output [..., 24, D] -> [..., 3, 8, D]."""
  if name.endswith("attention/out/kernel"):
    return array.reshape(*array.shape[:-2], 3, 8, array.shape[-1])
  return array.reshape(*array.shape[:-1], 3, 8) if "attention/" in name else array


def unscanned(config: T5Config, dtype: str = "float32", *, split: bool = False) -> dict:
  """`layers_0`, `layers_1`, …"""
  target = {}
  for name, array in random_leaves(config, dtype).items():
    if "/layers/" not in name:
      target[name] = array
      continue
    for layer, one in enumerate(array):
      path = name.replace("/layers/", f"/layers_{layer}/")
      target[path] = split_heads(path, one) if split else one
  return target


def scanned(config: T5Config, *, split: bool) -> dict:
  """Layers on axis 1, under `layers`, or with heads apart as in scalable_t5: encoder/encoder."""
  target = {}
  for name, array in random_leaves(config).items():
    side = name.partition("/")[0]
    path = name.replace("/layers/", f"/{side}/") if split else name
    if "/layers/" in name:
      array = np.moveaxis(split_heads(name, array) if split else array, 0, 1)
    target[path] = array
  return target


def folder_of(name: str) -> str:
  return f"target.{name.replace('/', '.')}"


def write_zarr(folder: Path, array: np.ndarray) -> None:
  # As by default in T5X: several chunks, and gzip.
  chunks = [max(1, size // 2) for size in array.shape]
  metadata = {
    "shape": list(array.shape),
    "chunks": chunks,
    "compressor": {"id": "gzip", "level": 1},
  }
  spec = {
    "driver": "zarr",
    "dtype": array.dtype.name,
    "kvstore": {"driver": "file", "path": f"{folder}/"},
    "metadata": metadata,
  }
  ts.open(spec, create=True).result().write(array).result()


def spec_of(name: str, array: np.ndarray, kvstore: dict) -> dict:
  metadata = {"shape": list(array.shape), "chunks": list(array.shape)}
  metadata["compressor"] = {"id": "gzip", "level": 1}
  return {
    "driver": "zarr",
    "dtype": array.dtype.name,
    "kvstore": {"path": f"{folder_of(name)}/", **kvstore},
    "metadata": metadata,
  }


def packed(array: np.ndarray) -> msgpack.ExtType:
  content = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))


def write_manifest(folder: Path, target: dict, **changes) -> None:
  """The msgpack file, with a state that cannot be read: no such folders, and no such types."""
  lost = spec_of("lost", np.zeros((7, 7)), {"driver": "file", "path": "state.lost/"})
  param_states = {"token_embedder": {"embedding": {"m": packed(np.ones(1)), "v_row": lost}}}
  state = {"step": packed(np.array(5, np.int32)), "param_states": param_states}
  state["alien"] = msgpack.ExtType(1, b"\xc1 not msgpack")
  optimizer = {"state": state, "target": traverse_util.unflatten_dict(target, sep="/")}
  content = {"version": 3, "optimizer": optimizer, **changes}
  (folder / "checkpoint").write_bytes(msgpack.packb(content, use_bin_type=True))


def write_legacy(folder: Path, leaves: dict, kvstore: dict | None = None, **changes) -> dict:
  """Matrices as zarr, vectors inline; returns what the msgpack file says of `target`."""
  folder.mkdir()
  entries = {}
  for name, array in leaves.items():
    if array.ndim == 1:
      entries[name] = packed(array)
      continue
    write_zarr(folder / folder_of(name), array)
    entries[name] = spec_of(name, array, kvstore or {"driver": "gfile"})
  write_manifest(folder, entries, **changes)
  return entries


def read_checkpoint(folder: Path, config: T5Config, dtype: str | None = None) -> dict:
  """The parameters of a checkpoint, nested, as host arrays."""
  _, parameters = open_t5x_language_model(folder, config, dtype=dtype)
  arrays = map_all(lambda name, leaf: np.asarray(leaf), parameters)
  return traverse_util.unflatten_dict(arrays, sep="/")


def assert_same(params: dict, config: T5Config, dtype: str = "float32") -> None:
  expected = random_leaves(config, dtype)
  actual = traverse_util.flatten_dict(params, sep="/")
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    np.testing.assert_array_equal(actual[name], array, err_msg=name)
