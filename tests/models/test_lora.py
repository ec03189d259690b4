"""Low-rank updates of the LM's attention (LoRA, arXiv:2106.09685 §4.1)."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.errors import UserError
from slm_jax.models.quantization import Dense
from slm_jax.training import parameters
from slm_jax.training.config import FakeDatasetConfig
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.restore import load_speech_language_model
from tests.models.test_t5 import DECODER_TOKENS, MASK, MT5, T5, TOKENS, init
from tests.training.test_recipes import ADAPTER
from tests.untrained_runs import save_untrained

LORA = dataclasses.replace(MT5, lora_rank=3)
DATASET = FakeDatasetConfig(
  task_feature_lengths={"audio": 16_000, "inputs": 4, "targets": 4}, batch_size=2, vocab_size=64
)
TRAINABLE = "adapter/.*|language_model/.*/lora_(down|up)"


def logits(config, params):
  found = jax.jit(T5(config).apply)({"params": params}, TOKENS, MASK, DECODER_TOKENS)
  return np.asarray(found)


def test_updates_are_kernels_of_low_rank_and_start_at_none():
  fresh = parameters.flatten(nn.unbox(init(LORA)))
  added = {path for path in fresh if "lora" in path}
  attentions = {
    "encoder/layers/attention",
    "decoder/layers/self_attention",
    "decoder/layers/encoder_decoder_attention",
  }
  assert added == {
    f"{a}/{p}/lora_{m}" for a in attentions for p in ("query", "value") for m in ("down", "up")
  }
  base = {path: leaf for path, leaf in fresh.items() if path not in added}
  expected = logits(MT5, parameters.unflatten(base))
  np.testing.assert_array_equal(logits(LORA, parameters.unflatten(fresh)), expected)

  rng = np.random.default_rng(1)
  learnt = {path: rng.normal(0, 0.1, fresh[path].shape).astype(np.float32) for path in added}
  merged = dict(base)
  for path in added:
    if path.endswith("lora_down"):
      layer = path.removesuffix("lora_down")
      merged[layer + "kernel"] = base[layer + "kernel"] + learnt[path] @ learnt[layer + "lora_up"]
  found = logits(LORA, parameters.unflatten(base | learnt))
  np.testing.assert_allclose(found, logits(MT5, parameters.unflatten(merged)), atol=2e-5)
  assert np.abs(found - expected).max() > 1e-2


def test_int8_kernels_take_updates_in_floats():
  layer = Dense(
    4, ("embed", "joined_kv"), "float32", nn.initializers.ones, weights="int8", lora_rank=2
  )
  params = nn.unbox(layer.init(jax.random.key(0), np.ones((1, 3), np.float32))["params"])
  assert params["kernel"].dtype == np.int8 and params["lora_down"].dtype == np.float32


def test_a_run_with_updates_is_read_back(tiny_bases, tmp_path):
  recipe = AdapterRecipe(**tiny_bases, adapter=ADAPTER, lora_rank=2, trainable=TRAINABLE)
  checkpoint = save_untrained(recipe, tmp_path / "run", DATASET)
  model, step = load_speech_language_model(recipe, checkpoint.parent, step=None, max_samples=16_000)
  assert step == 1 and any("lora_up" in path for path in parameters.flatten(model.params))


def test_a_trainable_that_forgets_the_updates_is_refused(tiny_bases, tmp_path):
  recipe = AdapterRecipe(**tiny_bases, adapter=ADAPTER, lora_rank=2)
  with pytest.raises(UserError, match="lora_down; widen train.trainable"):
    save_untrained(recipe, tmp_path / "run", DATASET)
