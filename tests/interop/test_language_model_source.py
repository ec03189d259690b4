"""One door for every source: what is behind it, and what model it is."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from flax import traverse_util

from slm_jax.errors import UserError
from slm_jax.interop import load_language_model, open_language_model
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from slm_jax.models.t5 import T5, T5Config
from tests.t5x_folders import (
  CONFIG,
  T5_1_0,
  UMT5,
  random_leaves,
  random_params,
  scanned,
  unscanned,
  write_legacy,
)

GATED_TIED = dataclasses.replace(CONFIG, logits_via_embedding=True)
RELU_UNTIED = dataclasses.replace(CONFIG, mlp_activations=("relu",))


@pytest.mark.parametrize(
  ("config", "form", "split"),
  [
    (CONFIG, unscanned, False),
    (CONFIG, unscanned, True),
    (CONFIG, scanned, False),
    (UMT5, unscanned, True),
    (UMT5, scanned, True),
    (T5_1_0, unscanned, False),
    (GATED_TIED, scanned, True),
    (RELU_UNTIED, unscanned, False),
  ],
)
def test_the_config_of_a_checkpoint_is_inferred(tmp_path, config, form, split):
  write_legacy(tmp_path / "checkpoint_5", form(config, split=split))
  source = open_language_model(tmp_path / "checkpoint_5")
  assert source.config == config
  for name, array in random_leaves(config).items():
    np.testing.assert_array_equal(source.parameters[name], array, err_msg=name)


def write_gin(folder: Path, value: str) -> None:
  (folder / "config.gin").write_text(
    "from __gin__ import dynamic_registration\n\n# Parameters for network.T5Config:\n"
    f"network.T5Config.head_dim = 64\nnetwork.T5Config.mlp_activations = {value}\n"
  )


@pytest.mark.parametrize(
  ("value", "activations"),
  [
    ("('silu', 'linear')", ("silu", "linear")),
    ("('swish', 'linear')", ("silu", "linear")),
    ("['gelu',\n     'linear']", ("gelu", "linear")),
    ("%ACTIVATIONS", ("gelu", "linear")),
    ("(os.remove, 'x')", ("gelu", "linear")),
  ],
)
def test_activations_are_those_of_the_config_gin_above(tmp_path, value, activations):
  folder = save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 5)
  write_gin(tmp_path, value)
  assert open_language_model(folder).config.mlp_activations == activations


@pytest.mark.parametrize(
  ("value", "message"),
  [("('relu',)", "its FFNs have 2 input kernels"), ("('tanh', 'linear')", "expected one or two")],
)
def test_a_config_gin_of_another_model_is_refused(tmp_path, value, message):
  folder = save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 5)
  write_gin(tmp_path, value)
  with pytest.raises(UserError, match=message) as caught:
    open_language_model(folder)
  assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
  ("ending", "fields"),
  [
    ("relpos_bias/rel_embedding", ["num_heads", "head_dim", "attention/query/kernel"]),
    ("mlp/wo/kernel", ["mlp_dim"]),
    ("token_embedder/embedding", ["vocab_size", "emb_dim"]),
    ("query/kernel", ["head_dim"]),
  ],
)
def test_what_a_checkpoint_leaves_open_is_named(tmp_path, ending, fields):
  leaves = {name: x for name, x in unscanned(CONFIG).items() if not name.endswith(ending)}
  write_legacy(tmp_path / "c", leaves)
  with pytest.raises(UserError, match="leave open") as caught:
    open_language_model(tmp_path / "c")
  for field in fields:
    assert field in str(caught.value)


def test_a_folder_that_is_neither_is_told_what_was_expected(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    load_language_model(tmp_path / "nowhere")
  with pytest.raises(UserError, match="holds neither config.json .* nor .*checkpoint"):
    load_language_model(tmp_path)
  save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 5)
  with pytest.raises(UserError, match="one of the checkpoints in it: checkpoint_5"):
    load_language_model(tmp_path)
  with pytest.raises(UserError, match="gs://bucket/folder"):
    load_language_model("gs://bucket")


def test_the_tokenizer_is_found_beside_a_checkpoint_or_named(tmp_path, tiny_tokenizer):
  config = dataclasses.replace(CONFIG, vocab_size=64)
  folder = save_t5x_checkpoint(tmp_path, config, random_params(config), 5)
  assert load_language_model(folder).tokenizer is None
  for place in (tmp_path / "elsewhere.model", tmp_path / "spiece.model", folder / "spiece.model"):
    shutil.copy(tiny_tokenizer, place)
    named = place if place.name == "elsewhere.model" else None
    assert load_language_model(folder, tokenizer=named).tokenizer.vocab_size() == 64
  with pytest.raises(UserError, match="tokenizer .*no.model does not exist"):
    open_language_model(folder, tokenizer=tmp_path / "no.model")


# Every path of the same weights.

SHAPE = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
TYPES = ["float32", "bfloat16", "float16", "float64"]


@pytest.fixture(scope="module")
def model():
  torch.manual_seed(0)
  found = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**SHAPE))
  with torch.no_grad():
    for parameter in found.parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.3)
  return found.eval()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["single", "sharded", "zip", "legacy", "sharded .bin"])
def test_every_file_of_transformers_gives_its_weights(tmp_path, model, kind, dtype):
  cast = transformers.MT5ForConditionalGeneration(model.config).to(getattr(torch, dtype)).eval()
  cast.load_state_dict(model.state_dict())
  if kind in ("single", "sharded"):
    cast.save_pretrained(tmp_path, max_shard_size="10KB" if kind == "sharded" else "1GB")
  else:
    cast.config.save_pretrained(tmp_path)
    state = dict(cast.state_dict())
    shards = [list(state)[i::3] for i in range(3)] if kind == "sharded .bin" else [list(state)]
    names = (
      [f"pytorch_model-{i}.bin" for i in range(3)] if len(shards) > 1 else ["pytorch_model.bin"]
    )
    for name, keys in zip(names, shards, strict=True):
      zipped = kind != "legacy"
      shard = {key: state[key] for key in keys}
      torch.save(shard, tmp_path / name, _use_new_zipfile_serialization=zipped)
    if len(shards) > 1:
      weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
      index = json.dumps({"weight_map": weight_map})
      (tmp_path / "pytorch_model.bin.index.json").write_text(index)
  lm = load_language_model(tmp_path)
  state = {name: x.to(torch.float32).numpy() for name, x in cast.state_dict().items()}
  expected = np.stack(
    [state[f"decoder.block.{i}.layer.2.DenseReluDense.wo.weight"] for i in (0, 1)]
  )
  kernel = lm.params["decoder"]["layers"]["mlp"]["wo"]["kernel"]
  assert kernel.dtype.name == dtype.replace("float64", "float32")
  np.testing.assert_array_equal(kernel.astype(np.float32), expected.swapaxes(1, 2))
  head = lm.params["decoder"]["logits_dense"]["kernel"].astype(np.float32)
  np.testing.assert_array_equal(head, state["lm_head.weight"].T)
  if dtype in ("float32", "float64"):
    tokens = np.random.default_rng(0).integers(2, 64, (2, 7))
    with torch.no_grad():
      ids = torch.tensor(tokens)
      logits = cast(input_ids=ids, decoder_input_ids=ids).logits.to(torch.float32).numpy()
    ours = lm.logits(lm.encode(tokens=tokens), tokens > 0, tokens)
    np.testing.assert_allclose(ours, logits, atol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["t5x", "orbax"])
def test_every_layout_of_t5x_gives_its_weights(tmp_path, layout, dtype):
  leaves = unscanned(CONFIG, dtype)
  if layout == "t5x":
    write_legacy(tmp_path / "c", leaves)
  else:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      tree = {"target": traverse_util.unflatten_dict(leaves, sep="/")}
      checkpointer.save(tmp_path / "c" / "state", tree)
  params = load_language_model(tmp_path / "c").params
  for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
    expected = random_leaves(CONFIG, dtype)[name]
    expected = expected.astype(np.float32) if dtype == "float64" else expected
    assert leaf.dtype == expected.dtype
    np.testing.assert_array_equal(leaf, expected, err_msg=name)


# Round trips, through files alone: neither side is ever whole in memory.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hugging_face_to_ours_and_back_is_bitwise(tmp_path, model, dtype):
  from safetensors import safe_open

  cast = transformers.MT5ForConditionalGeneration(model.config).to(getattr(torch, dtype))
  cast.load_state_dict(model.state_dict())
  cast.save_pretrained(tmp_path / "theirs")
  for source, target in (("theirs", "ours"), ("ours", "back")):
    lm = open_language_model(tmp_path / source)
    save_language_model(tmp_path / target, lm.config, lm.params)
  again = transformers.MT5ForConditionalGeneration.from_pretrained(
    tmp_path / "back", dtype=getattr(torch, dtype)
  )
  with safe_open(tmp_path / "theirs" / "model.safetensors", "pt") as file:
    for name in file.keys():
      assert torch.equal(again.state_dict()[name], file.get_tensor(name)), name


@pytest.mark.parametrize(("form", "dtype"), [(unscanned, "bfloat16"), (scanned, "float32")])
@pytest.mark.parametrize("config", [CONFIG, UMT5, T5_1_0], ids=["mt5", "umt5", "t5-1.0"])
def test_t5x_to_hugging_face_and_back_is_bitwise(tmp_path, config, dtype, form):
  leaves = {name: array.astype(dtype) for name, array in form(config, split=False).items()}
  write_legacy(tmp_path / "c", leaves)
  lm = open_language_model(tmp_path / "c")
  save_language_model(tmp_path / "hf", lm.config, lm.params, max_shard_bytes=20_000)
  assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
  middle = open_language_model(tmp_path / "hf")
  assert middle.config == config
  folder = save_t5x_checkpoint(tmp_path, middle.config, middle.params, 7)
  for name, parameter in open_language_model(folder).parameters.items():
    array, expected = np.asarray(parameter), random_leaves(config, dtype)[name]
    assert array.dtype == expected.dtype
    assert array.tobytes() == expected.tobytes(), name


def test_a_stack_that_lies_in_one_array_is_read_once_when_it_is_written(tmp_path, monkeypatch):
  from slm_jax.interop.stored_parameter import StoredParameter

  write_legacy(tmp_path / "c", scanned(UMT5, split=True))
  lm = open_language_model(tmp_path / "c")
  reads, read = [], StoredParameter.read
  monkeypatch.setattr(
    StoredParameter, "read", lambda self, index=None: reads.append(self) or read(self, index)
  )
  save_language_model(tmp_path / "hf", lm.config, lm.params)
  assert len(reads) == len(lm.parameters)


def test_loaded_and_saved_parameters_may_be_arrays_of_any_kind(tmp_path):
  params = jax.tree.map(jnp.asarray, random_params(CONFIG))
  save_language_model(tmp_path / "hf", CONFIG, params)
  folder = save_t5x_checkpoint(tmp_path, CONFIG, params, 1)
  for path in (tmp_path / "hf", folder):
    jax.tree.map(np.testing.assert_array_equal, load_language_model(path).params, params)


def test_a_model_opened_and_never_read_costs_no_bytes_of_weights(tmp_path, monkeypatch):
  import os

  config = T5Config(**{**dataclasses.asdict(CONFIG), "mlp_activations": ("gelu", "linear")})
  save_language_model(tmp_path, config, random_params(config))
  monkeypatch.setattr(os, "preadv", None)
  source = open_language_model(tmp_path)
  tokens = jnp.zeros((1, 2), jnp.int32)
  shapes = jax.eval_shape(T5(source.config).init, jax.random.key(0), tokens, tokens == 0, tokens)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == sum(
    one.size for one in source.parameters.values()
  )
