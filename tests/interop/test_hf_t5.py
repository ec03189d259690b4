"""Parity with Hugging Face Transformers in PyTorch, on folders that either side wrote."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from slm_jax.errors import UserError
from slm_jax.interop import load_language_model
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.relative_position import relative_position_bucket
from slm_jax.models.t5 import T5, T5Config
from tests.torch_language_models import (
  DECODER_TOKENS,
  LABELS,
  MASK,
  RNG,
  SHAPE,
  SOURCE,
  TARGET,
  TOKENS,
  torch_forward,
  torch_model,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """(torch mT5 with its own output layer, the folder it saved)."""
  config = transformers.MT5Config(**SHAPE)
  model = torch_model(transformers.MT5ForConditionalGeneration, config, own_head=True)
  folder = tmp_path_factory.mktemp("mt5")
  model.save_pretrained(folder)
  return model, folder


@pytest.fixture(scope="module")
def lm(reference) -> LanguageModel:
  return load_language_model(reference[1])


def test_encoder_logits_and_loss_equal_torch(reference, lm):
  model, _ = reference
  with torch.no_grad():
    expected = torch_forward(model, input_ids=torch.tensor(TOKENS))
    expected_loss = model(
      input_ids=torch.tensor(TOKENS),
      attention_mask=torch.tensor(MASK.astype(np.int64)),
      labels=torch.tensor(LABELS),
    ).loss
  memory = lm.encode(tokens=TOKENS, mask=MASK)
  np.testing.assert_allclose(
    memory[MASK], expected.encoder_last_hidden_state.numpy()[MASK], atol=1e-4
  )
  logits = lm.logits(memory, MASK, DECODER_TOKENS)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
  log_probs = jax.nn.log_softmax(logits)
  loss = -np.take_along_axis(np.asarray(log_probs), LABELS[..., None], axis=-1).mean()
  np.testing.assert_allclose(loss, expected_loss.numpy(), atol=1e-5)


def test_embeddings_and_their_gradient_equal_torch(reference, lm):
  model, _ = reference
  embeddings = RNG.normal(size=(3, SOURCE, 32)).astype(np.float32)
  weights = RNG.normal(size=(3, TARGET, 96)).astype(np.float32)

  inputs_embeds = torch.tensor(embeddings, requires_grad=True)
  expected = torch_forward(model, inputs_embeds=inputs_embeds)
  (expected.logits * torch.tensor(weights)).mean().backward()

  @jax.jit
  def value_and_gradient(params, embeddings):
    def loss(embeddings):
      t5, variables = T5(lm.config), {"params": params}
      memory = t5.apply(variables, embeddings, MASK, method="encode")
      hidden = t5.apply(variables, memory, MASK, DECODER_TOKENS, method="decode")
      logits = t5.apply(variables, hidden, method="logits")
      return (logits * weights).mean(), logits

    return jax.value_and_grad(loss, has_aux=True)(embeddings)

  (_, logits), gradient = value_and_gradient(lm.params, embeddings)
  np.testing.assert_allclose(logits, expected.logits.detach().numpy(), atol=1e-4)
  expected_gradient = inputs_embeds.grad.numpy()
  size = np.abs(expected_gradient[MASK]).max()
  np.testing.assert_allclose(gradient[MASK] / size, expected_gradient[MASK] / size, atol=1e-4)
  np.testing.assert_array_equal(gradient[~MASK], 0.0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 64), (32, 20)])
def test_relative_position_buckets_equal_torch(bidirectional, num_buckets, max_distance):
  options = {
    "bidirectional": bidirectional,
    "num_buckets": num_buckets,
    "max_distance": max_distance,
  }
  distance = np.arange(-300, 301)
  attention = transformers.models.mt5.modeling_mt5.MT5Attention
  expected = attention._relative_position_bucket(torch.tensor(distance), **options)
  np.testing.assert_array_equal(relative_position_bucket(distance, **options), expected.numpy())


def ids_after_start(sequences: torch.Tensor, length: int) -> np.ndarray:
  """Drops the start token, pads to `length`, and blanks what the other side fills in after EOS."""
  ids = sequences.numpy()[:, 1:]
  ids = np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
  return np.where(np.cumsum(ids == 1, axis=1) - (ids == 1) > 0, 0, ids)


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(1, 1.0), (4, 1.0), (4, 2.0), (3, -1.0)])
def test_greedy_and_beam_ids_equal_torch(reference, lm, num_beams, length_penalty):
  model, _ = reference
  # More rows than elsewhere, so that some end early and some reach the limit.
  rng = np.random.default_rng(7)
  mask = np.arange(12) < rng.integers(2, 13, (12, 1))
  tokens = np.where(mask, rng.integers(2, 96, (12, 12)), 0)
  options = {"max_new_tokens": 10, "num_beams": num_beams}
  if num_beams > 1:
    options["length_penalty"] = length_penalty
  with torch.no_grad():
    expected = model.generate(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor(mask.astype(np.int64)),
      do_sample=False,
      use_cache=False,  # its cache counts the layers of the encoder
      return_dict_in_generate=True,
      output_scores=True,
      **options,
    )
  result = lm.generate(tokens=tokens, mask=mask, **options)
  ids = ids_after_start(expected.sequences, 10)
  ended = (ids == 1).any(1)
  assert ended.any() and not ended.all(), "the weights should end some rows early"
  np.testing.assert_array_equal(result.ids, ids)
  if num_beams > 1:
    np.testing.assert_allclose(result.scores, expected.sequences_scores.numpy(), rtol=1e-4)


FRESH = T5Config(
  vocab_size=96,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=48,
  num_encoder_layers=1,
  num_decoder_layers=2,
)


@functools.cache
def fresh_params(config: T5Config) -> dict:
  tokens = jnp.zeros((1, 2), jnp.int32)
  boxed = jax.jit(T5(config).init)(jax.random.key(0), tokens, tokens == 0, tokens)
  return jax.tree.map(np.asarray, nn.unbox(boxed)["params"])


@pytest.mark.parametrize(
  ("changes", "model_class"),
  [
    ({}, "MT5ForConditionalGeneration"),
    ({"mlp_activations": ("relu",), "logits_via_embedding": True}, "T5ForConditionalGeneration"),
    ({"per_layer_relpos": True, "logits_via_embedding": True}, "UMT5ForConditionalGeneration"),
  ],
  ids=["mt5", "t5-1.0", "umt5"],
)
def test_torch_reads_what_was_saved_and_a_round_trip_is_bitwise(tmp_path, changes, model_class):
  config = dataclasses.replace(FRESH, **changes)
  params = fresh_params(config)
  save_language_model(tmp_path, config, params)
  lm = load_language_model(tmp_path)
  assert lm.config == config
  jax.tree.map(np.testing.assert_array_equal, lm.params, params)

  model = getattr(transformers, model_class).from_pretrained(tmp_path).eval()
  with torch.no_grad():
    expected = torch_forward(model, input_ids=torch.tensor(TOKENS)).logits.numpy()
  logits = lm.logits(lm.encode(tokens=TOKENS, mask=MASK), MASK, DECODER_TOKENS)
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_bfloat16_is_kept_and_cast_on_request(tmp_path):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), fresh_params(FRESH))
  save_language_model(tmp_path, FRESH, params)
  kept = load_language_model(tmp_path).params
  assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
  jax.tree.map(np.testing.assert_array_equal, kept, params)
  cast = load_language_model(tmp_path, dtype="float32").params
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), cast, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {np.dtype(np.float32)}
  with pytest.raises(UserError, match="float64"):
    load_language_model(tmp_path, dtype="float64")


def test_shards_are_read_through_their_index(reference, lm, tmp_path):
  model, _ = reference
  model.save_pretrained(tmp_path, max_shard_size="40KB")
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
  jax.tree.map(np.testing.assert_array_equal, load_language_model(tmp_path).params, lm.params)
  last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
  last.unlink()
  with pytest.raises(UserError, match=last.name):
    load_language_model(tmp_path)


def remove(tensors):
  del tensors["decoder.block.1.layer.2.DenseReluDense.wo.weight"]


def add(tensors):
  tensors["decoder.block.9.layer.0.layer_norm.weight"] = np.ones(32, np.float32)


def reshape(tensors):
  tensors["shared.weight"] = tensors["shared.weight"][:90].copy()


def spoil(tensors):
  tensors["encoder.final_layer_norm.weight"][3] = np.nan


def make_integer(tensors):
  tensors["encoder.final_layer_norm.weight"] = np.ones(32, np.int32)


@pytest.mark.parametrize(
  ("damage", "names"),
  [
    (remove, ["lacks 1", "decoder.block.1.layer.2.DenseReluDense.wo.weight"]),
    (add, ["holds 1", "decoder.block.9.layer.0.layer_norm.weight"]),
    (reshape, ["shared.weight", r"\[90, 32\]", r"\[96, 32\]"]),
    (spoil, ["encoder.final_layer_norm.weight", "NaN"]),
    (make_integer, ["encoder.final_layer_norm.weight", "int32"]),
  ],
)
def test_a_damaged_tensor_is_named(tmp_path, damage, names):
  save_language_model(tmp_path, FRESH, fresh_params(FRESH))
  tensors = load_file(tmp_path / "model.safetensors")
  damage(tensors)
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match=".*".join(names)) as caught:
    load_language_model(tmp_path)
  assert str(tmp_path) in str(caught.value)


def edit_config(folder: Path, **changes) -> None:
  path = folder / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda folder: edit_config(folder, model_type="gpt2"), "model_type is 'gpt2'"),
    (lambda folder: edit_config(folder, d_model=None), "d_model is None"),
    (lambda folder: edit_config(folder, feed_forward_proj="gelu"), "feed_forward_proj is 'gelu'"),
    (lambda folder: edit_config(folder, decoder_start_token_id=2), "decoder_start_token_id is 2"),
    (lambda folder: edit_config(folder, dropout_rate=1.5), "dropout_rate=1.5"),
    (lambda folder: edit_config(folder, layer_norm_epsilon="1e-6"), "layer_norm_epsilon is '1e-6'"),
    (
      lambda folder: edit_config(folder, feed_forward_proj=["relu"]),
      r"proj is \['relu'\], expected",
    ),
    (lambda folder: edit_config(folder, eos_token_id=[1]), r"eos_token_id is \[1\], expected"),
    (lambda folder: edit_config(folder, num_heads=True), "num_heads is True, expected"),
    (lambda folder: edit_config(folder, num_layers=10**9), "calls for 1000000002 layers"),
    (lambda folder: (folder / "config.json").write_text("[" * 10**5), "config.json is not JSON"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    (lambda folder: (folder / "config.json").unlink(), "holds neither config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"PK"), "readable safetensors"),
    (lambda folder: (folder / "spiece.model").write_bytes(b"x"), "not a SentencePiece model"),
  ],
)
def test_a_damaged_folder_is_a_users_error(tmp_path, damage, message):
  save_language_model(tmp_path, FRESH, fresh_params(FRESH))
  damage(tmp_path)
  with pytest.raises(UserError, match=message):
    load_language_model(tmp_path)


def test_a_missing_folder_is_a_users_error(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    load_language_model(tmp_path / "nowhere")


def test_params_that_do_not_fit_the_config_are_not_saved(tmp_path):
  wrong = dataclasses.replace(FRESH, num_decoder_layers=3)
  with pytest.raises(ValueError, match="do not fit"):
    save_language_model(tmp_path / "lm", wrong, fresh_params(FRESH))
  assert not (tmp_path / "lm").exists()
