"""The retriever against its formula, and what must not change its scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.entities import SEPARATOR, encode_entities
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.retriever import (
  RetrieverConfig,
  SpeechRetriever,
  SpeechRetrieverConfig,
  soft_maximum,
  split_entities,
)
from slm_jax.training import parameters
from tests.conftest import TINY_ENCODER

CONFIG = RetrieverConfig(
  towers=AdapterConfig(
    num_layers=1,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    length_reduction=LengthReductionConfig(kind="mean", factor=2),
  ),
  width=16,
  embedding_dim=8,
  max_entities=2,
  max_entity_bytes=6,
)

WHOLE = SpeechRetrieverConfig(speech_encoder=TINY_ENCODER, retriever=CONFIG)


def rows(texts: list[str], length: int) -> np.ndarray:
  """Targets of a task: bytes, then 1."""
  found = np.zeros((len(texts), length), np.int32)
  for row, text in zip(found, texts, strict=True):
    data = [byte + 3 for byte in text.encode()] + [1]
    row[: len(data)] = data
  return found


@pytest.fixture(scope="module")
def batch() -> Batch:
  rng = np.random.default_rng(0)
  return Batch(
    audio=rng.integers(-3000, 3000, (3, 6000)).astype(np.int16),
    audio_lengths=np.asarray([6000, 3000, 0], np.int32),
    decoder_target_tokens=rows(["Anna|Bo", "Zoë", ""], 12),
  )


@pytest.fixture(scope="module")
def model(batch):
  """Jitted: (whole, speech, entities, scale) of one set of parameters."""
  module = SpeechRetriever(WHOLE)
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), batch)["params"])

  def bound(method):
    return jax.jit(lambda *inputs: module.apply({"params": params}, *inputs, method=method))

  methods = ("__call__", "embed_speech", "embed_entities")
  return *(bound(method) for method in methods), params["retriever"]["scale"]["log"]


def read_back(tokens: np.ndarray) -> str:
  return bytes(int(t) - 3 for t in tokens if t).decode()


def test_entities_of_a_row_are_taken_apart():
  texts = ["Anna|Bo", "Zoë", "", "|Al||Toolong|Bo|Cy", "sixsix|x"]
  found, real = split_entities(jnp.asarray(rows(texts, 24)), 4, 6)
  kept = [
    [read_back(t) for t, r in zip(*row, strict=True) if r]
    for row in zip(np.asarray(found), np.asarray(real), strict=True)
  ]
  # The fourth has more than four places, of which the fourth is too long.
  assert kept == [["Anna", "Bo"], ["Zoë"], [], ["Al"], ["sixsix", "x"]]
  np.testing.assert_array_equal(found[0][real[0]], encode_entities(["Anna", "Bo"], 6))
  assert not np.asarray(found)[~np.asarray(real)].any()


def test_similarity_is_the_soft_maximum_of_cosines():
  rng = np.random.default_rng(1)
  speech, entities = rng.normal(size=(2, 5, 4)), rng.normal(size=(3, 4))
  speech /= np.linalg.norm(speech, axis=-1, keepdims=True)
  entities /= np.linalg.norm(entities, axis=-1, keepdims=True)
  mask = np.arange(5) < np.asarray([[5], [2]])
  expected = np.zeros((2, 3))
  for b in range(2):
    for m in range(3):
      cosines = np.asarray([speech[b, t] @ entities[m] for t in range(5) if mask[b, t]])
      expected[b, m] = np.log(np.exp(9.0 * cosines).sum()) / 9.0
  found = soft_maximum(*map(jnp.asarray, (speech, mask, entities)), jnp.asarray([9.0]))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_and_neighbours_never_matter(model, batch):
  _, embed, entities, _ = model
  speech, mask = embed(batch.audio, batch.audio_lengths)
  assert mask.sum(axis=1).tolist() == [5, 3, 0]
  np.testing.assert_allclose(np.linalg.norm(speech[mask], axis=-1), 1, atol=1e-5)
  loud = np.where(np.arange(6000) < batch.audio_lengths[:, None], batch.audio, 9999)
  again, _ = embed(loud.astype(np.int16), batch.audio_lengths)
  np.testing.assert_array_equal(speech[mask], again[mask])
  longer = entities(encode_entities(["Bo"], 12))
  np.testing.assert_allclose(entities(encode_entities(["Anna", "Bo"], 6))[1:], longer, atol=1e-5)


def test_a_batch_compares_every_utterance_with_every_place(model, batch):
  whole, embed, entities, log_scale = model
  logits, texts, real = whole(batch)
  assert logits.shape == (3, 6) and real.tolist() == [True, True, True, False, False, False]
  assert [read_back(t) for t in np.asarray(texts)[:3]] == ["Anna", "Bo", "Zoë"]
  speech, mask = embed(batch.audio, batch.audio_lengths)
  alone, scale = entities(encode_entities(["Anna", "Bo", "Zoë"], 6)), jnp.exp(log_scale)
  similar = soft_maximum(speech, mask, alone, scale)
  np.testing.assert_allclose(logits[:, :3], scale * similar, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(logits[2], -2 * scale[0])  # nothing was heard


@pytest.mark.parametrize(
  "change",
  [{"width": 8}, {"embedding_dim": 4}, {"max_entities": 1}, {"max_entity_bytes": 5}],
  ids=str,
)
def test_each_field_changes_the_model(batch, change):
  other = SpeechRetriever(
    dataclasses.replace(WHOLE, retriever=dataclasses.replace(CONFIG, **change))
  )

  def shapes(module):
    made, params = jax.eval_shape(module.init_with_output, jax.random.key(0), batch)
    flat = parameters.flatten(nn.unbox(params["params"]))
    return [x.shape for x in made], {path: leaf.shape for path, leaf in flat.items()}

  assert shapes(other) != shapes(SpeechRetriever(WHOLE))


def test_impossible_shapes_are_refused():
  with pytest.raises(ValueError, match="embedding_dim=0"):
    dataclasses.replace(CONFIG, embedding_dim=0)
  with pytest.raises(ValueError, match="ctc_embeddings"):
    towers = dataclasses.replace(CONFIG.towers, ctc_embeddings=True)
    dataclasses.replace(CONFIG, towers=towers)
  assert SEPARATOR == "|"  # as docs/retrieval.md tells users
