"""Parameters on a mesh equal the whole ones, and every process reads its own share of the files."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from slm_jax.errors import UserError
from slm_jax.interop import load_language_model
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.placement import place
from slm_jax.interop.safetensors_file import SafetensorsFile
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from slm_jax.training.sharding import MeshConfig, make_mesh
from tests.t5x_folders import CONFIG, UMT5, random_params

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
ARRAY = np.random.default_rng(0).normal(size=(16, 4096)).astype(np.float32)


def stored(folder: Path) -> StoredParameter:
  save_file({"x": ARRAY}, folder / "x.safetensors")
  tensor = SafetensorsFile(folder / "x.safetensors").tensors["x"]
  return StoredParameter(shape=ARRAY.shape, dtype=ARRAY.dtype, tensors=(tensor,))


@pytest.mark.parametrize(
  "spec",
  [(), ("fsdp",), (None, "tensor"), ("fsdp", "tensor"), (("data", "fsdp"), "tensor")],
  ids=str,
)
def test_shards_are_read_once_each_and_join_to_the_whole(tmp_path, monkeypatch, spec):
  parameter = stored(tmp_path)
  sharding = NamedSharding(MESH, PartitionSpec(*spec))
  counted, held, preadv, read = [], [], os.preadv, StoredParameter.read

  def counting(file, buffers, position):
    counted.append(preadv(file, buffers, position))
    return counted[-1]

  def reading(self, index):
    held.append(read(self, index))
    return held[-1]

  monkeypatch.setattr(os, "preadv", counting)
  monkeypatch.setattr(StoredParameter, "read", reading)
  placed = place(parameter, sharding)
  assert placed.sharding == sharding and placed.dtype == ARRAY.dtype
  np.testing.assert_array_equal(placed, ARRAY)
  # Replicas are not read again, and no slice is more than a shard.
  assert sum(counted) == ARRAY.nbytes
  assert {part.nbytes for part in held} == {placed.addressable_shards[0].data.nbytes}


def test_arrays_are_placed_like_stored_parameters():
  sharding = NamedSharding(MESH, PartitionSpec("fsdp", "tensor"))
  for array in (ARRAY, jax.numpy.asarray(ARRAY)):
    placed = place(array, sharding)
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, ARRAY)


@pytest.mark.parametrize("config", [CONFIG, UMT5], ids=["mt5", "umt5"])
@pytest.mark.parametrize("source", ["hf", "t5x"])
def test_a_model_on_a_mesh_computes_what_it_does_on_one_device(tmp_path, config, source):
  # Small enough that attention is not all on one key, where rounding decides which.
  params = jax.tree.map(lambda x: 0.2 * x, random_params(config))
  if source == "hf":
    save_language_model(tmp_path, config, params)
    path = tmp_path
  else:
    path = save_t5x_checkpoint(tmp_path, config, params, 1)
  whole, spread = load_language_model(path), load_language_model(path, mesh=MESH)
  jax.tree.map(np.testing.assert_array_equal, whole.params, spread.params)
  kernel = spread.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
  assert kernel.sharding.spec == PartitionSpec(None, "tensor", "fsdp")
  assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4
  tokens = np.random.default_rng(1).integers(2, 96, (2, 7))
  logits = [
    model.logits(model.encode(tokens=tokens), tokens > 0, tokens) for model in (whole, spread)
  ]
  np.testing.assert_allclose(*logits, atol=1e-4)
  if source == "hf" and not config.per_layer_relpos:
    # Rows on the host, fewer than there are devices.
    answers = [model.generate(tokens=tokens, max_new_tokens=3) for model in (whole, spread)]
    np.testing.assert_array_equal(answers[1].ids, answers[0].ids)
    np.testing.assert_allclose(answers[1].scores, answers[0].scores, atol=1e-4)


def test_a_mesh_without_the_rules_axes_is_named(tmp_path):
  save_language_model(tmp_path, CONFIG, random_params(CONFIG))
  mesh = jax.make_mesh((8,), ("tensor",))
  with pytest.raises(ValueError, match=r"axes \('tensor',\) and lacks \['data', 'fsdp'\]"):
    load_language_model(tmp_path, mesh=mesh)


def test_damage_is_named_by_whoever_reads_it(tmp_path):
  params = random_params(CONFIG)
  names = ("encoder", "decoder")
  for side in names:
    params[side][f"{side}_norm"]["scale"] = np.full(32, np.nan, np.float32)
  save_language_model(tmp_path, CONFIG, params)
  with pytest.raises(UserError) as caught:
    load_language_model(tmp_path, mesh=MESH)
  for side in names:
    assert f"{side}.final_layer_norm.weight" in str(caught.value)


# Several processes.

WORKER = """
import json, os, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
source, port, count, process = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
jax.distributed.initialize(f"localhost:{port}", count, process)
from slm_jax.interop import load_language_model, open_language_model
from slm_jax.training import parameters
from slm_jax.training.sharding import MeshConfig, make_mesh

counted, preadv = [], os.preadv
def counting(file, buffers, position):
  counted.append(preadv(file, buffers, position))
  return counted[-1]
os.preadv = counting
mesh = make_mesh(MeshConfig(data=1, fsdp=count, tensor=1))
lm = load_language_model(source, mesh=mesh)
read = sum(counted)
whole = parameters.flatten(open_language_model(source).params)
for path, leaf in parameters.flatten(lm.params).items():
  for shard in leaf.addressable_shards:
    assert (jax.device_get(shard.data) == whole[path].read()[shard.index]).all(), path
own = sum(s.data.nbytes for leaf in jax.tree.leaves(lm.params) for s in leaf.addressable_shards)
fingerprint = parameters.fingerprint({"language_model": lm.params})
print(json.dumps({"read": read, "own": own, "fingerprint": fingerprint}))
"""


@pytest.mark.parametrize("count", [2, 4])
def test_each_of_several_processes_reads_its_share(tmp_path, count):
  from slm_jax.models.t5 import T5Config
  from slm_jax.training import parameters

  # The model's width, which the mesh divides, is a file's rows for some kernels, columns for others.
  config = T5Config(
    vocab_size=512, emb_dim=4096, num_heads=2, head_dim=8, mlp_dim=64, num_encoder_layers=1,
    num_decoder_layers=1,
  )  # fmt: skip
  save_language_model(tmp_path, config, random_params(config))
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, str(tmp_path), str(port), str(count), str(process)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(count)
  ]
  try:
    outputs = [worker.communicate(timeout=120) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  assert not any(worker.returncode for worker in workers), outputs[0][1][-2000:]
  results = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
  size = (tmp_path / "model.safetensors").stat().st_size
  for result in results:
    assert result["read"] == result["own"]
    assert result["read"] < 1.05 * size / count
  expected = parameters.fingerprint({"language_model": load_language_model(tmp_path).params})
  assert {result["fingerprint"] for result in results} == {expected}
