"""Every family of the T5 lineage against Transformers: through ready embeddings, forward and backward."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn

from slm_jax.interop import load_language_model
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.t5 import T5
from slm_jax.training.losses import vocabulary_cross_entropy
from tests.torch_language_models import (
  DECODER_TOKENS,
  LABELS,
  MASK,
  RNG,
  SHAPE,
  SOURCE,
  TOKENS,
  torch_forward,
  torch_model,
)


@pytest.mark.parametrize(
  ("model_class", "config", "own_head"),
  [
    ("MT5ForConditionalGeneration", transformers.MT5Config(**SHAPE), False),
    ("T5ForConditionalGeneration", transformers.T5Config(**SHAPE), False),
    (
      "T5ForConditionalGeneration",
      transformers.T5Config(**SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
      True,
    ),
    ("UMT5ForConditionalGeneration", transformers.UMT5Config(**SHAPE), False),
    ("UMT5ForConditionalGeneration", transformers.UMT5Config(**SHAPE), True),
  ],
  ids=["mt5-tied", "t5-1.0", "t5-1.1", "umt5-tied", "umt5"],
)
def test_every_family_equals_torch(tmp_path, model_class, config, own_head):
  model = torch_model(getattr(transformers, model_class), config, own_head=own_head)
  model.save_pretrained(tmp_path)
  lm = load_language_model(tmp_path)
  embeddings = RNG.normal(size=(3, SOURCE, 32)).astype(np.float32)
  loss, memory, logits, gradient = through_embeddings(lm, embeddings)
  expected = torch_through_embeddings(model, embeddings)
  np.testing.assert_allclose(loss, expected[0], atol=1e-5)
  np.testing.assert_allclose(memory[MASK], expected[1][MASK], atol=1e-4)
  np.testing.assert_allclose(logits, expected[2], atol=1e-4)
  size = np.abs(expected[3]).max()
  np.testing.assert_allclose(gradient[MASK] / size, expected[3][MASK] / size, atol=1e-4)
  np.testing.assert_array_equal(gradient[~MASK], 0.0)
  for num_beams in (1, 4):
    ids = generated_by_torch(model, embeddings, num_beams)
    result = lm.generate(
      embeddings=jnp.asarray(embeddings),
      mask=jnp.asarray(MASK),
      max_new_tokens=8,
      num_beams=num_beams,
    )
    np.testing.assert_array_equal(result.ids[:, : ids.shape[1]], ids)


def generated_by_torch(model, embeddings: np.ndarray, num_beams: int) -> np.ndarray:
  """New ids. Without a cache: that of Transformers 5 has the encoder's number of layers."""
  ids = model.generate(
    inputs_embeds=torch.tensor(embeddings),
    attention_mask=torch.tensor(MASK.astype(np.int64)),
    do_sample=False,
    use_cache=False,
    decoder_start_token_id=0,
    pad_token_id=0,
    eos_token_id=1,
    max_new_tokens=8,
    num_beams=num_beams,
  )
  ids = ids[:, 1:].numpy()
  # Beam search there takes a pad id of 0 for none and fills up with EOS.
  is_end = ids == 1
  return np.where(np.cumsum(is_end, axis=1) > is_end, 0, ids)


def through_embeddings(lm: LanguageModel, embeddings: np.ndarray):
  """(mean loss of LABELS, encoder output, logits, gradient to the embeddings)."""
  ones = np.ones(LABELS.shape, np.float32)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def run(embeddings, params):
    def forward(t5: T5):
      memory = t5.encode(embeddings, MASK)
      hidden = t5.decode(memory, MASK, DECODER_TOKENS)
      return memory, t5.logits(hidden), t5.output_projection(hidden)

    outputs: Any = nn.apply(forward, T5(lm.config))({"params": params})
    memory, logits, (hidden, kernel) = outputs
    loss = vocabulary_cross_entropy(hidden, kernel, LABELS, ones, chunk=4)[0] / LABELS.size
    return loss, (loss, memory, logits)

  gradient, (loss, memory, logits) = run(embeddings, lm.params)
  return float(loss), *(np.asarray(x) for x in (memory, logits, gradient))


def torch_through_embeddings(model, embeddings: np.ndarray):
  inputs_embeds = torch.tensor(embeddings, requires_grad=True)
  out = torch_forward(model, inputs_embeds=inputs_embeds, labels=torch.tensor(LABELS))
  out.loss.backward()
  arrays = (out.encoder_last_hidden_state, out.logits)
  gradient = inputs_embeds.grad.numpy()  # pyright: ignore
  return out.loss.item(), *(x.detach().numpy() for x in arrays), gradient


def test_umt5s_logits_are_scaled_as_its_config_says_and_not_as_transformers_5_does(tmp_path):
  """umT5 was trained with an output of its own, unscaled, and its published config.json says so with
  tie_word_embeddings=false. Transformers 4.57 obeys; 5.x takes the setting for true and multiplies
  by d_model**-0.5."""
  config = transformers.UMT5Config(**SHAPE, tie_word_embeddings=False)
  model = torch_model(transformers.UMT5ForConditionalGeneration, config, own_head=True)
  model.save_pretrained(tmp_path)
  with torch.no_grad():
    out = torch_forward(model, input_ids=torch.tensor(TOKENS), output_hidden_states=True)
    unscaled = model.lm_head(out.decoder_hidden_states[-1]).numpy()
  np.testing.assert_allclose(out.logits.numpy(), unscaled * 32**-0.5, atol=1e-5)

  def logits(**changes) -> jax.Array:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    lm = load_language_model(tmp_path)
    return lm.logits(lm.encode(tokens=TOKENS, mask=MASK), MASK, DECODER_TOKENS)

  np.testing.assert_allclose(logits(tie_word_embeddings=False), unscaled, atol=1e-4)
  # A folder that Transformers 5 wrote says what it did, and is followed as well.
  scaled = logits(tie_word_embeddings=True)
  np.testing.assert_allclose(scaled, out.logits.numpy(), atol=1e-4)
