"""Checkpoints that are damaged or do not fit: every defect is one line that names the tensor."""

import dataclasses
import re
import shutil

import msgpack
import numpy as np
import pytest

from slm_jax.errors import UserError
from tests.t5x_folders import (
  CONFIG,
  UMT5,
  WO,
  folder_of,
  read_checkpoint,
  scanned,
  unscanned,
  write_legacy,
  write_manifest,
)


def without(leaves):
  del leaves[WO], leaves["encoder/layers_0/pre_mlp_layer_norm/scale"]


def surplus(leaves):
  leaves["encoder/layers_0/adapter/kernel"] = np.ones((2, 2), np.float32)


def reshape(leaves):
  leaves[WO] = leaves[WO].T.copy()


def spoil(leaves):
  for name in (WO, "encoder/encoder_norm/scale"):
    leaves[name] = leaves[name].copy()
    leaves[name].flat[3] = np.nan


def make_integer(leaves):
  leaves[WO] = np.ones((48, 32), np.uint16)


@pytest.mark.parametrize(
  ("damage", "names"),
  [
    (without, ["lacks 2", WO, "encoder/layers_0/pre_mlp_layer_norm/scale"]),
    (surplus, ["holds 1", "encoder/layers_0/adapter/kernel"]),
    (reshape, ["1 tensors are mis-shaped", WO, "[32, 48]", "[48, 32]"]),
    (spoil, ["2 tensors hold NaN", WO, "encoder/encoder_norm/scale"]),
    (make_integer, [WO, "uint16", "version 3"]),
  ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, damage, names):
  leaves = unscanned(CONFIG)
  damage(leaves)
  write_legacy(tmp_path / "c", leaves)
  with pytest.raises(UserError) as caught:
    read_checkpoint(tmp_path / "c", CONFIG)
  for part in (*names, str(tmp_path / "c")):
    assert part in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [unscanned, scanned])
def test_a_wrong_config_is_told_what_the_checkpoint_seems_to_have(tmp_path, form):
  leaves = form(UMT5, split=True)
  write_legacy(tmp_path / "c", leaves)
  changes = {
    "vocab_size": 100,
    "emb_dim": 40,
    "num_heads": 4,
    "head_dim": 6,
    "mlp_dim": 50,
    "num_encoder_layers": 3,
    "num_decoder_layers": 4,
    "relpos_num_buckets": 8,
    "logits_via_embedding": True,
    "per_layer_relpos": False,
  }
  with pytest.raises(UserError) as caught:
    read_checkpoint(tmp_path / "c", dataclasses.replace(UMT5, **changes))
  for field, value in changes.items():
    assert f"{field}={getattr(UMT5, field)} where the config has {value}" in str(caught.value)


def lose_folder(folder, entries):
  shutil.rmtree(folder / folder_of(WO))


def lose_chunk(folder, entries):
  (folder / folder_of(WO) / "1.0").unlink()


def damage_chunk(folder, entries):
  (folder / folder_of(WO) / "1.0").write_bytes(b"no gzip")


def damage_inline(folder, entries):
  scale = np.ones(31, np.float32)
  content = ((32,), "float32", scale.tobytes())
  name = "encoder/encoder_norm/scale"
  write_manifest(folder, {**entries, name: msgpack.ExtType(1, msgpack.packb(content))})


def put_number(folder, entries):
  write_manifest(folder, {**entries, "encoder/encoder_norm/scale": 3})


def leave_folder(folder, entries):
  entries[WO]["kvstore"]["path"] = "../checkpoint_4/" + folder_of(WO)
  write_manifest(folder, entries)


def change_driver(folder, entries):
  entries[WO]["kvstore"] = {"driver": "http", "base_url": "http://localhost/"}
  write_manifest(folder, entries)


def truncate(folder, entries):
  content = (folder / "checkpoint").read_bytes()
  (folder / "checkpoint").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lose_folder, WO),
    (lose_chunk, WO),
    (damage_chunk, WO),
    (damage_inline, "encoder/encoder_norm/scale is not a readable array"),
    (put_number, "encoder/encoder_norm/scale is not a readable array"),
    (leave_folder, f"{WO} is at '../checkpoint_4"),
    (change_driver, f"{WO} is stored by the drivers 'zarr' and 'http'"),
    (truncate, "checkpoint is not a msgpack file"),
    (lambda folder, _: (folder / "checkpoint").write_bytes(b"\xc1"), "is not a msgpack file"),
    (lambda folder, entries: write_manifest(folder, entries, version=1), "of version 1"),
    (lambda folder, _: write_manifest(folder, {}), "no parameters"),
    (lambda folder, _: (folder / "checkpoint").unlink(), "holds neither the file checkpoint"),
    (lambda folder, _: shutil.rmtree(folder), "is not a folder"),
  ],
)
def test_a_damaged_checkpoint_is_a_users_error(tmp_path, damage, message):
  folder = tmp_path / "checkpoint_5"
  damage(folder, write_legacy(folder, unscanned(CONFIG)))
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    read_checkpoint(folder, CONFIG)
  assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_checkpoints_is_told_apart(tmp_path):
  write_legacy(tmp_path / "checkpoint_5", unscanned(CONFIG))
  with pytest.raises(UserError, match="name one of the checkpoints in it: checkpoint_5"):
    read_checkpoint(tmp_path, CONFIG)


def test_an_empty_orbax_folder_is_a_users_error(tmp_path):
  (tmp_path / "state").mkdir()
  with pytest.raises(UserError, match="state holds no parameters"):
    read_checkpoint(tmp_path, CONFIG)
