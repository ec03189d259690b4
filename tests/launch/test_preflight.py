"""Preflight: the compiler's figures, what is refused without it, what crosses the wires."""

import dataclasses
import json
import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.batch import Batch, LMRows
from slm_jax.cli.main import main
from slm_jax.errors import UserError
from slm_jax.launch.absent_slice import slice_devices
from slm_jax.launch.abstract_run import abstract_run
from slm_jax.launch.chips import CHIPS, GIB, chip_of
from slm_jax.launch.collectives import BETWEEN_SLICES, collectives
from slm_jax.launch.preflight import preflight, search
from slm_jax.launch.programs import matrix_parameters, positions, share_bytes
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.t5 import T5Config
from slm_jax.training.config import DatasetConfig, FakeDatasetConfig, TrainConfig
from slm_jax.training.fake_batches import FakeBatches
from slm_jax.training.optimizer import OptimizerConfig, make_optimizer
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.setup import prepare
from slm_jax.training.sharding import MeshConfig, make_mesh, shard_batch

ADAPTER = AdapterConfig(
  num_layers=1, num_heads=2, head_dim=8, mlp_dim=16,
  length_reduction=LengthReductionConfig(kind="drop", factor=4),
)  # fmt: skip
LENGTHS = {"audio": 16_000, "inputs": 4, "targets": 6}
SHAPES = AdapterRecipe(
  speech_encoder=ConformerConfig(
    num_layers=2, model_dim=128, num_heads=2, num_mel_bins=32, subsampling_channels=(8, 8)
  ),
  language_model=T5Config(
    vocab_size=512, emb_dim=128, num_heads=2, head_dim=64, mlp_dim=256, num_encoder_layers=2,
    num_decoder_layers=2,
  ),
  adapter=ADAPTER,
  frozen_dtype="bfloat16",
)  # fmt: skip


def run_config(recipe: AdapterRecipe, **changes) -> TrainConfig:
  settings: dict = {
    "model_dir": "nowhere",
    "model": recipe,
    "train_dataset": FakeDatasetConfig(task_feature_lengths=LENGTHS, batch_size=8, vocab_size=64),
    "optimizer": OptimizerConfig(),
    "total_steps": 10,
    "mesh": MeshConfig(data=1, fsdp=-1),
  }
  return TrainConfig(**settings | changes)


@pytest.mark.parametrize("algorithm", ["adamw", "adafactor"])
def test_what_is_predicted_is_what_lies_there(tiny_bases, algorithm):
  """Shapes, types and shardings leaf by leaf, and so the bytes on each device."""
  config = run_config(
    AdapterRecipe(**tiny_bases, adapter=ADAPTER, frozen_dtype="bfloat16"),
    optimizer=OptimizerConfig(algorithm=algorithm),
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
  )
  mesh = make_mesh(config.mesh)
  run = abstract_run(config, mesh)
  arrays = next(FakeBatches(config.train_dataset))
  optimizer = make_optimizer(config.optimizer, config.total_steps)
  real = prepare(config.model.build(), Batch.from_dict(arrays), optimizer, mesh, 0)
  batch = shard_batch(Batch.from_dict(arrays), mesh, 8)

  def describe(tree) -> list:
    leaves = jax.tree.leaves(tree)
    return [(x.shape, x.dtype, x.sharding.shard_shape(x.shape)) for x in leaves]

  for predicted, actual in ((run.frozen, real.frozen), (run.state, real.state), (run.batch, batch)):
    assert describe(predicted) == describe(actual)
    on_first = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(actual))
    assert share_bytes(predicted) == on_first


def test_local_devices_are_measured_too():
  report = preflight(run_config(SHAPES), "local", num_beams=2)
  assert [program.name for program in report.programs] == ["train", "encode", "decode"]
  assert report.fits and report.roofline is None
  # Virtual devices share the machine's memory.
  machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  assert report.capacity == machine // 8 and ": fits, " in report.summary()
  train = report.programs[0]
  # Some bytes are rounded up, none are missing.
  assert 0 <= train.arguments / sum(report.by_kind.values()) - 1 < 0.01
  assert train.results < 10_000  # the state takes its own place


@pytest.fixture(scope="module")
def slice_report():
  return preflight(run_config(SHAPES), "v5e:2x2", programs=("train",))


def test_a_slice_that_is_not_there(slice_report):
  assert slice_report.chips == 4 and slice_report.mesh == {"data": 1, "fsdp": 4, "tensor": 1}
  assert slice_report.fits and slice_report.capacity == CHIPS["v5e"].memory
  train = slice_report.programs[0]
  assert train.needed == train.arguments + train.results + train.temporaries + train.code
  assert sum(train.collectives.values()) > 0
  roofline = slice_report.roofline
  assert 0 < roofline.best_mfu < 1 and set(roofline.seconds) == {
    "products", "memory", "interconnect",
  }  # fmt: skip
  expected = roofline.step_seconds * 10 * 4 / 3600
  assert slice_report.chip_hours == pytest.approx(expected)


def test_between_slices_goes_the_adapters_gradient_and_nothing_else():
  config = run_config(SHAPES, mesh=MeshConfig(data=-1, fsdp=4))
  notes = []
  report = preflight(config, "v5e:2x2", num_slices=2, programs=("train",), note=notes.append)
  assert report.chips == 8 and report.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
  assert report.topology == "2 x v5e:2x2"
  sent = report.programs[0].collectives[BETWEEN_SLICES]
  # fp32; at least each chip's share of the gradient, at most all of it, and no frozen weight.
  assert report.by_kind["trained"] <= sent <= 4 * report.by_kind["trained"]
  assert 4 * report.by_kind["trained"] < report.by_kind["frozen"]


def test_moments_in_host_memory_take_none_of_the_chip(slice_report):
  config = run_config(SHAPES, optimizer=OptimizerConfig(state_memory="pinned_host"))
  report = preflight(config, "v5e:2x2", programs=("train",))
  before, after = slice_report.programs[0], report.programs[0]
  assert slice_report.on_host == 0
  # Counters stay.
  assert report.by_kind["optimizer"] < 100
  assert report.on_host == pytest.approx(slice_report.by_kind["optimizer"], abs=100)
  # Small arrays are padded to whole tiles on the chip.
  assert before.arguments - after.arguments >= 0.95 * report.on_host


def test_each_slice_holds_whole_models():
  with pytest.raises(UserError, match="data = 1 does not divide over 2 slices.*MeshConfig.data=2"):
    make_mesh(MeshConfig(data=1, fsdp=-1), slice_devices("v5e:2x2", 2))


def test_neighbours_on_the_mesh_are_neighbours_on_the_wires():
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1), slice_devices("v5e:4x4"))
  coordinates = np.array([device.coords for device in mesh.devices.flat])
  steps = np.abs(np.roll(coordinates, -1, axis=0) - coordinates).sum(axis=1)
  assert (steps == 1).all()


def test_products_are_counted_by_what_weights_meet():
  run = abstract_run(run_config(SHAPES), make_mesh(MeshConfig(fsdp=1)))
  met, weights = positions(run), matrix_parameters(run)
  # 1 s is 25 frames, 7 of them left by a factor of 4; 4 tokens of instruction, 6 of target; 8 rows.
  assert met == {
    "speech_encoder": 8 * 25, "adapter": 8 * 7, "encoder": 8 * 11, "memory": 8 * 11,
    "decoder": 8 * 6, "head": 8 * 6,
  }  # fmt: skip
  shared = dataclasses.replace(run, batch=dataclasses.replace(run.batch, lm_rows=LMRows(4, 30, 20)))
  rows = {"encoder": 2 * 30, "memory": 2 * 30, "decoder": 2 * 20, "head": 2 * 20}
  assert positions(shared) == met | rows
  assert weights["head"] == 512 * 128 and weights["memory"] == 2 * 2 * 128 * 128
  assert weights["encoder"] == 2 * (4 * 128 * 128 + 3 * 128 * 256)
  assert weights["decoder"] == 2 * (6 * 128 * 128 + 3 * 128 * 256)


def test_what_cannot_fit_is_refused_without_compiling():
  large = dataclasses.replace(
    SHAPES, language_model=dataclasses.replace(SHAPES.language_model, vocab_size=160_000_000)
  )
  notes = []
  report = preflight(run_config(large), "v5e:2x2", note=notes.append)
  assert not report.fits and not report.programs and not notes
  short = sum(report.by_kind.values()) - CHIPS["v5e"].memory
  assert f"does not fit, {short / GIB:.2f} GiB short" in report.summary()


def test_search_finds_the_smallest_slice(monkeypatch):
  from slm_jax.launch import preflight as module

  monkeypatch.setitem(module.SLICES, "v5e", ("1x1", "2x2"))
  chip = dataclasses.replace(chip_of("v5e"), memory=3_000_000)
  monkeypatch.setitem(CHIPS, "v5e", chip)
  reports = search(run_config(SHAPES), chip)
  shapes = [(r.topology, r.batch_size, r.fits) for r in reports]
  assert shapes[0] == ("v5e:1x1", 8, False)
  assert shapes[-1][2] is False and any(fits for _, _, fits in shapes) == (len(shapes) > 2)


def test_search_tries_what_divides_over_mesh_and_shares(monkeypatch):
  from slm_jax.launch import preflight as module

  def fake(config, topology, **options):
    size = config.train_dataset.batch_size
    return types.SimpleNamespace(
      topology=topology, batch_size=size, fits=size < 100, summary=lambda: ""
    )

  monkeypatch.setattr(module, "preflight", fake)
  dataset = DatasetConfig(
    mixture_or_task_name="x", mixture_or_task_module="x", task_feature_lengths=LENGTHS,
    batch_size=9, num_shards=3,
  )  # fmt: skip
  config = run_config(SHAPES, train_dataset=dataset, mesh=MeshConfig(data=1, fsdp=4))
  notes = []
  reports = search(config, chip_of("v5e"), note=notes.append)
  # Not on one chip; 12 is the next that four chips and three shares divide.
  assert notes[0].startswith("v5e:1x1: mesh (data, fsdp, tensor) = (1, 4, 1) does not fit")
  assert [(r.topology, r.batch_size) for r in reports] == [
    ("v5e:2x2", size) for size in (12, 24, 48, 96, 192)
  ]
  with pytest.raises(UserError, match="does not fit"):
    search(dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=3)), chip_of("v5e"))


def test_collectives_in_loops_count_as_often_as_they_run():
  """A psum inside a scan of 7, and one beside it, over 8 devices."""
  mesh = make_mesh(MeshConfig(data=8))
  spec = NamedSharding(mesh, PartitionSpec("data"))

  def body(carry, _):
    total = jax.lax.with_sharding_constraint(
      carry.sum(0, keepdims=True), NamedSharding(mesh, PartitionSpec())
    )
    return carry + jnp.sin(total), None

  def program(x):
    x, _ = jax.lax.scan(body, x, None, length=7)
    return x, x.sum()

  x = jax.ShapeDtypeStruct((8, 100), np.float32, sharding=spec)
  found = collectives(jax.jit(program).lower(x).compile().as_text())
  assert found.count["all-reduce"] == 8
  assert found.size["all-reduce"] == 7 * 400 + 4


def test_the_papers_experiment_fits_sixteen_chips(tmp_path, capsys):
  """USM-2B, mT5-XXL and 156 M parameters of adapter, 30 s of audio: the pod job compiles and fits."""
  output, info = tmp_path / "report.json", tmp_path / "info.txt"
  status = main([
    "preflight", "--gin_file=experiments/slm_2310_00230.gin", "--topology=v5p:2x2x4",
    "--programs=train", f"--output={output}", f"--model_info={info}",
  ])  # fmt: skip
  assert status == 0, capsys.readouterr()
  # Kept beside this file: a change of any parameter's shape or place is seen, and meant.
  assert info.read_text() == (Path(__file__).parent / "slm_2310_00230.txt").read_text()
  (report,) = json.loads(output.read_text())
  assert report["fits"] and report["chips"] == 16
  trained = report["by_kind"]["trained"] * 16 / 4
  assert 156e6 < trained < 157e6
  frozen = report["by_kind"]["frozen"] * 16 / 2
  assert 14.7e9 < frozen < 14.9e9


def test_a_run_of_no_task_needs_no_name_of_one(tmp_path, capsys):
  """Names of data and folders may be left open, and are not asked for where nothing uses them."""
  (tmp_path / "fake.gin").write_text(
    "train.model_dir = %MODEL_DIR\ntrain.total_steps = 3\ntrain.model = @LanguageModelRecipe()\n"
    "train.optimizer = @OptimizerConfig()\ntrain.train_dataset = @FakeDatasetConfig()\n"
    "FakeDatasetConfig.task_feature_lengths = {'inputs': 4, 'targets': 4}\n"
    "FakeDatasetConfig.batch_size = 3\nFakeDatasetConfig.vocab_size = 64\n"
    "train.mesh = @MeshConfig()\nMeshConfig.data = 4\n"
    "LanguageModelRecipe.config = @T5Config()\nLanguageModelRecipe.tokenizer = ''\n"
    "include 'models/t5/families/mt5.gin'\ninclude 'models/t5/sizes/small.gin'\n"
  )
  flags = [f"--gin_file={tmp_path / 'fake.gin'}", "--topology=v5e:2x2"]
  assert main(["preflight", *flags]) == 2
  assert "BATCH_SIZE=3 is not a multiple of 4" in capsys.readouterr().err
  assert main(["preflight", "--topology=v5e:2x2"]) == 2
  assert "--gin_file is required" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "give either"),
    (["--topology=v5e:4x4", "--search=v5e"], "give either"),
    (["--topology=v9:4x4"], "v9:4x4"),
    (["--topology=v5e:3x5"], "v5e:3x5"),
    (["--topology=v5e:4x4x4"], "v5e:4x4x4"),  # of which libtpu would make a slice
    (["--topology=v5e:2x2", "--programs=fly"], "'fly'"),
    (["--search=gpu"], "gpu"),
    (["--search=v5e:4x4"], "v5e:4x4"),
    (["--topology=v5e:2x2", "--num_beams=0"], "--num_beams=0"),
    (["--topology=v5e:2x2", "--output=/no/such/report.json"], "/no/such/report.json"),
    (["--topology=v5e"], "v5e"),
    (["--topology=v5e:2x2", "--gin.BATCH_SIZE=6"], "BATCH_SIZE=6"),
    (["--topology=v5e:2x2", "--topology=v5e:16x16"], "BATCH_SIZE=64 is not a multiple of 256"),
  ],
  ids=str,
)
def test_mistakes_are_one_line(flags, message, capsys):
  assert main(["preflight", "--gin_file=experiments/slm_2310_00230.gin", *flags]) == 2
  error = capsys.readouterr().err.strip().split("\n")[-1]
  assert error.startswith("slm_jax: error:") and message in error
