"""SLM: joining speech and instruction, gradients through the frozen LM, independence of padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.interop import load_language_model
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.slm import SLM, join_compact
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.recipes import AdapterRecipe


def test_join_leaves_no_gap():
  first = jnp.arange(1, 13, dtype=jnp.float32).reshape(2, 3, 2)
  second = -jnp.arange(1, 9, dtype=jnp.float32).reshape(2, 2, 2)
  first_mask = jnp.array([[True, True, False], [True, True, True]])
  second_mask = jnp.array([[True, True], [True, False]])
  joined, mask = join_compact(first, first_mask, second, second_mask)
  np.testing.assert_array_equal(mask.sum(-1), [4, 4])
  np.testing.assert_array_equal(joined[0, :4], jnp.concatenate([first[0, :2], second[0]]))
  np.testing.assert_array_equal(joined[1, :4], jnp.concatenate([first[1], second[1, :1]]))
  np.testing.assert_array_equal(joined[~np.asarray(mask)], 0)


def test_join_passes_gradients_to_real_positions_only():
  first_mask = jnp.array([[True, True, False]])
  second_mask = jnp.array([[True, False]])

  def total(first, second):
    return join_compact(first, first_mask, second, second_mask)[0].sum()

  first, second = jax.grad(total, argnums=(0, 1))(jnp.ones((1, 3, 2)), jnp.ones((1, 2, 2)))
  np.testing.assert_array_equal(first[0, :, 0], [1, 1, 0])
  np.testing.assert_array_equal(second[0, :, 0], [1, 0])


@pytest.fixture(scope="module")
def slm(tiny_bases):
  recipe = AdapterRecipe(
    **tiny_bases,
    adapter=AdapterConfig(
      num_layers=1,
      num_heads=2,
      head_dim=8,
      mlp_dim=16,
      length_reduction=LengthReductionConfig(kind="stack", factor=2),
    ),
  )
  built = recipe.build()
  batch = Batch.fake(
    batch_size=3, num_samples=6000, prompt_length=5, target_length=6, vocab_size=64
  )
  boxed = jax.jit(built.objective.init)(jax.random.key(0), batch)
  fresh = nn.unbox(boxed)
  loaded = jax.tree.map(jnp.asarray, built.loaded)
  params = {**built.finish(fresh, loaded), **loaded}
  return built.objective.model, params, batch


def test_frames_that_a_reduction_by_ctc_has_no_room_for_are_counted(slm):
  model, params, batch = slm
  reduction = LengthReductionConfig(kind="ctc_blank", max_frames=0.3)
  adapter = dataclasses.replace(model.config.adapter, length_reduction=reduction)
  objective = SLMObjective(SLM(dataclasses.replace(model.config, adapter=adapter)))
  lengths = np.array([6000, 4100, 640], np.int32)
  batch = batch.replace(audio_lengths=lengths)
  shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0), batch))
  # No frame is blank: each takes a place.
  encoder = params["speech_encoder"]
  bias = encoder["ctc_head"]["bias"].at[0].set(-1e9)
  encoder = {**encoder, "ctc_head": {**encoder["ctc_head"], "bias": bias}}
  ones = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["adapter"])
  tree = {**params, "speech_encoder": encoder, "adapter": ones}
  _, sums = jax.jit(objective.loss)(tree, batch, jax.random.key(0))
  counts = np.array([model.config.speech_encoder.num_frames(int(n)) for n in lengths])
  room = reduction.output_length(counts[0])
  assert sums["frames_lost"] == np.maximum(counts - room, 0).sum() == 11
  _, sums = jax.eval_shape(SLMObjective(model).loss, params, batch, jax.random.key(0))
  assert "frames_lost" not in sums


def test_content_of_padding_changes_nothing(slm):
  model, params, batch = slm
  lengths = np.array([6000, 4100, 2500], np.int32)
  batch = batch.replace(audio_lengths=lengths)
  noise = np.where(np.arange(6000) < lengths[:, None], batch.audio, 9_999).astype(np.int16)
  quiet = model.apply({"params": params}, batch)
  loud = model.apply({"params": params}, batch.replace(audio=noise))
  np.testing.assert_allclose(quiet, loud, atol=1e-4)


def test_longer_padding_changes_nothing(slm):
  model, params, batch = slm
  batch = batch.replace(audio_lengths=np.array([3000, 2000, 2500], np.int32))
  short = batch.replace(audio=batch.audio[:, :3000])
  np.testing.assert_allclose(
    model.apply({"params": params}, batch), model.apply({"params": params}, short), atol=1e-4
  )


def test_speech_and_instruction_both_matter_and_their_order_too(slm):
  model, params, batch = slm
  base = model.apply({"params": params}, batch)
  other_audio = model.apply({"params": params}, batch.replace(audio=batch.audio[::-1]))
  tokens = batch.encoder_input_tokens[::-1]
  other_prompt = model.apply({"params": params}, batch.replace(encoder_input_tokens=tokens))
  turned = SLM(dataclasses.replace(model.config, speech_first=False))
  other_order = turned.apply({"params": params}, batch)
  for other in (other_audio, other_prompt, other_order):
    assert not np.allclose(base, other, atol=1e-4)


def test_instruction_only_equals_the_language_model_alone(slm, tiny_bases):
  model, params, batch = slm
  silent = batch.replace(audio_lengths=np.zeros(3, np.int32))
  logits = model.apply({"params": params}, silent)
  lm = load_language_model(tiny_bases["language_model"], dtype="float32")
  tokens = jnp.asarray(batch.encoder_input_tokens)
  memory = lm.encode(tokens=tokens, mask=tokens != 0)
  alone = lm.logits(memory, tokens != 0, jnp.asarray(batch.decoder_input_tokens))
  np.testing.assert_allclose(logits, alone, atol=1e-4)
