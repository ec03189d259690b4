"""Checkpoints of T5X's layouts, built independently or by Orbax, and our own."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from slm_jax.errors import UserError
from slm_jax.interop import load_language_model, stored_parameter, t5x_format
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from tests.t5x_folders import (
  CONFIG,
  T5_1_0,
  UMT5,
  WO,
  assert_same,
  folder_of,
  packed,
  random_params,
  read_checkpoint,
  scanned,
  unscanned,
  write_legacy,
  write_manifest,
  write_zarr,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, UMT5, T5_1_0], ids=["mt5", "umt5", "t5-1.0"])
def test_a_round_trip_is_bitwise(tmp_path, config, dtype):
  folder = save_t5x_checkpoint(tmp_path, config, random_params(config, dtype), 12)
  assert folder == tmp_path / "checkpoint_12"
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_12"]
  assert_same(read_checkpoint(folder, config), config, dtype)


def test_zeros_survive_a_round_trip(tmp_path):
  params = jax.tree.map(np.zeros_like, random_params(CONFIG))
  folder = save_t5x_checkpoint(tmp_path, CONFIG, params, 0)
  jax.tree.map(np.testing.assert_array_equal, read_checkpoint(folder, CONFIG), params)


@pytest.mark.parametrize("config", [CONFIG, UMT5], ids=["mt5", "umt5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_reads_as_t5x_reads_it(tmp_path, config, dtype):
  """By Flax's decoder, and each spec as it stands, below the folder and without its chunks."""
  folder = save_t5x_checkpoint(tmp_path, config, random_params(config, dtype), 7)
  content = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
  assert content["version"] == 3
  assert content["optimizer"]["state"] == {"step": 7}
  expected = unscanned(config, dtype, split=config.per_layer_relpos)
  leaves = traverse_util.flatten_dict(
    content["optimizer"]["target"], sep="/", is_leaf=lambda _, value: "kvstore" in value
  )
  assert leaves.keys() == expected.keys()
  inline = {name for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
  assert inline == {name for name in leaves if name.endswith("scale")}
  for name, leaf in leaves.items():
    if name not in inline:
      assert tuple(leaf["metadata"]["shape"]) == expected[name].shape
      del leaf["metadata"]["chunks"], leaf["metadata"]["compressor"]
      leaf["kvstore"]["path"] = f"{folder}/{leaf['kvstore']['path']}"
      leaf = ts.open(leaf, open=True).result().read().result()
    assert leaf.dtype == expected[name].dtype
    np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


@pytest.mark.parametrize(
  ("make", "kvstore"),
  [
    (functools.partial(unscanned, CONFIG), {"driver": "file"}),
    (functools.partial(unscanned, CONFIG, split=True), {"driver": "gfile"}),
    (functools.partial(scanned, CONFIG, split=False), {"driver": "gcs", "bucket": "dummy"}),
    (functools.partial(scanned, UMT5, split=True), {"driver": "file"}),
    (functools.partial(unscanned, UMT5, split=True), {"driver": "file"}),
  ],
  ids=["layers_0", "layers_0-heads-apart", "stacked", "scalable_t5", "scalable_t5-unscanned"],
)
def test_every_form_of_the_own_layout_is_read(tmp_path, make, kvstore):
  folder = tmp_path / "checkpoint_5"
  write_legacy(folder, make(), kvstore)
  config = make.args[0]
  assert_same(read_checkpoint(folder, config), config)


def test_paths_of_another_machine_and_of_an_older_tensorstore_are_resolved(tmp_path):
  folder = tmp_path / "checkpoint_5"
  entries = write_legacy(folder, unscanned(CONFIG, "bfloat16"))
  for number, entry in enumerate(value for value in entries.values() if isinstance(value, dict)):
    if number % 2:
      entry["kvstore"]["path"] = "/home/other/checkpoint_5/" + entry["kvstore"]["path"]
    else:
      entry["path"] = entry["kvstore"].pop("path")
  write_manifest(folder, entries)
  moved = folder.rename(tmp_path / "elsewhere")
  assert_same(read_checkpoint(moved, CONFIG), CONFIG, "bfloat16")


def test_arrays_that_flax_cut_into_pieces_are_read(tmp_path):
  leaves = unscanned(CONFIG)
  entries = {name: packed(array) for name, array in leaves.items()}
  array = leaves[WO]
  parts = np.split(array.reshape(-1), 3)
  entries[WO] = {
    "__msgpack_chunked_array__": True,
    "shape": {str(i): size for i, size in enumerate(array.shape)},
    "chunks": {str(i): packed(part) for i, part in enumerate(parts)},
  }
  write_manifest(tmp_path, entries)
  assert_same(read_checkpoint(tmp_path, CONFIG), CONFIG)


@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("use_zarr3", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orbax_is_read(tmp_path, use_ocdbt, use_zarr3, dtype):
  state = {"param_states": {"m": np.ones((7, 7))}, "step": np.array(5)}
  target = traverse_util.unflatten_dict(unscanned(CONFIG, dtype), sep="/")
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(tmp_path / "state", {"target": target, "state": state})
  if not use_ocdbt:
    shutil.rmtree(tmp_path / "state" / "state.param_states.m")
  assert_same(read_checkpoint(tmp_path, CONFIG), CONFIG, dtype)


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_zeros_of_orbax_are_not_taken_for_missing_chunks(tmp_path, use_zarr3):
  zeros = {name: np.zeros_like(array) for name, array in unscanned(CONFIG).items()}
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=use_zarr3)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(tmp_path / "state", {"target": traverse_util.unflatten_dict(zeros, sep="/")})
  params = read_checkpoint(tmp_path, CONFIG)
  assert not any(leaf.any() for leaf in jax.tree.leaves(params))


def test_orbax_with_a_file_of_placeholders_is_read(tmp_path):
  entries = {}
  (tmp_path / "state").mkdir()
  for name, array in unscanned(CONFIG).items():
    entries[name] = packed(array)
    if array.ndim > 1:
      write_zarr(tmp_path / "state" / folder_of(name), array)
      entries[name] = f"PLACEHOLDER://{folder_of(name)}"
  content = {"state": {"step": "PLACEHOLDER://state.step"}}
  content["target"] = traverse_util.unflatten_dict(entries, sep="/")
  (tmp_path / "state" / "checkpoint").write_bytes(msgpack.packb(content))
  assert_same(read_checkpoint(tmp_path, CONFIG), CONFIG)


def test_logits_equal_those_of_the_hugging_face_folder(tmp_path):
  save_language_model(tmp_path / "hf", CONFIG, random_params(CONFIG))
  write_legacy(tmp_path / "checkpoint_1", unscanned(CONFIG))
  expected = load_language_model(tmp_path / "hf")
  lm = load_language_model(tmp_path / "checkpoint_1")
  assert lm.config == expected.config
  rng = np.random.default_rng(1)
  tokens, targets = rng.integers(2, 96, (2, 9)), rng.integers(2, 96, (2, 4))
  mask = np.ones((2, 9), bool)
  logits = [model.logits(model.encode(tokens=tokens), mask, targets) for model in (lm, expected)]
  assert np.std(logits[0]) > 0.1
  np.testing.assert_array_equal(*logits)


def test_weights_are_cast_on_request(tmp_path):
  write_legacy(tmp_path / "c", unscanned(CONFIG, "float64"))
  assert_same(read_checkpoint(tmp_path / "c", CONFIG), CONFIG)
  cast = read_checkpoint(tmp_path / "c", CONFIG, dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype(jnp.bfloat16)}
  with pytest.raises(UserError, match="float64"):
    read_checkpoint(tmp_path / "c", CONFIG, dtype="float64")


@pytest.mark.parametrize("step", ["arrays", "manifest"])
def test_an_interrupted_save_leaves_no_checkpoint(tmp_path, monkeypatch, step):
  written = []

  def fail(*arguments):
    if step == "manifest" or len(written) == 9:
      raise KeyboardInterrupt
    written.append(arguments)
    return {}

  monkeypatch.setattr(t5x_format, {"arrays": "_write_zarr", "manifest": "write_bytes"}[step], fail)
  with pytest.raises(KeyboardInterrupt):
    save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 5)
  assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_not_overwritten(tmp_path):
  folder = save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 5)
  zeros = jax.tree.map(np.zeros_like, random_params(CONFIG))
  with pytest.raises(UserError, match="checkpoint_5 exists"):
    save_t5x_checkpoint(tmp_path, CONFIG, zeros, 5)
  assert_same(read_checkpoint(folder, CONFIG), CONFIG)


def test_params_that_do_not_fit_the_config_are_not_saved(tmp_path):
  with pytest.raises(ValueError, match="do not fit"):
    save_t5x_checkpoint(tmp_path / "t", UMT5, random_params(CONFIG), 5)
  with pytest.raises(ValueError, match="step=-1"):
    save_t5x_checkpoint(tmp_path / "t", CONFIG, random_params(CONFIG), -1)
  assert not (tmp_path / "t").exists()


def test_unusual_activations_are_told_by_a_config_gin(tmp_path):
  silu, relu = (
    dataclasses.replace(CONFIG, mlp_activations=(x, "linear")) for x in ("silu", "relu")
  )
  save_t5x_checkpoint(tmp_path / "usual", CONFIG, random_params(CONFIG), 1)
  assert not (tmp_path / "usual" / "config.gin").exists()
  for step in (1, 2):
    folder = save_t5x_checkpoint(tmp_path / "silu", silu, random_params(silu), step)
    assert load_language_model(folder).config == silu
  for other in (relu, CONFIG):
    with pytest.raises(UserError, match=r"config.gin is of another model: .*'silu', 'linear'"):
      save_t5x_checkpoint(tmp_path / "silu", other, random_params(other), 3)


def test_what_a_checkpoint_cannot_say_is_not_saved(tmp_path):
  far = dataclasses.replace(CONFIG, relpos_max_distance=64)
  with pytest.raises(UserError, match="relpos_max_distance=64: T5X's models have 128"):
    save_t5x_checkpoint(tmp_path, far, random_params(far), 1)
  assert not list(tmp_path.iterdir())


def test_large_arrays_are_cut_into_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(t5x_format, "_CHUNK_BYTES", 1000)
  folder = save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 5)
  assert len(list((folder / folder_of("token_embedder/embedding")).glob("[0-9]*"))) == 14
  assert_same(read_checkpoint(folder, CONFIG), CONFIG)


def test_a_bucket_becomes_a_description_for_tensorstore():
  expected = {"driver": "gcs", "bucket": "weights", "path": "mt5/small/checkpoint_1000000/"}
  assert t5x_format.kvstore_spec("gs://weights/mt5/small/checkpoint_1000000/") == expected
  with pytest.raises(UserError, match="gs://bucket/folder"):
    t5x_format.kvstore_spec("gs://weights")


def test_a_huge_chunk_is_decoded_once_and_read_in_blocks(tmp_path, monkeypatch):
  """Orbax writes one chunk for each device's shard, which may be gigabytes."""
  monkeypatch.setattr(t5x_format, "_CHUNK_BYTES", 2**12)
  monkeypatch.setattr(stored_parameter, "_BLOCK_BYTES", 2**12)
  array = np.random.default_rng(0).normal(size=(96, 64)).astype(np.float32)
  write_zarr(tmp_path / "state" / "target.x", array)  # four chunks of 6 KiB
  tensor = t5x_format.open_target(tmp_path)["x"]
  blocks = list(tensor.blocks((slice(0, 96), slice(0, 64))))
  assert len(blocks) > 4
  assert max(content.nbytes for _, content in blocks) <= 2**12
  for place, content in blocks:
    np.testing.assert_array_equal(content, array[place])
  # What was decoded last is still there when its file is not.
  for file in (tmp_path / "state" / "target.x").glob("[01].[01]"):
    file.unlink()
  np.testing.assert_array_equal(tensor.load((slice(50, 60), slice(40, 41))), array[50:60, 40:41])
