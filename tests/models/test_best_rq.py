"""BEST-RQ: codes as the paper defines them, what is hidden, what is told, and that it can be learnt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from slm_jax.batch import Batch
from slm_jax.interop import load_speech_encoder
from slm_jax.models.best_rq import BestRQ, BestRQConfig, codes, hidden_spans
from slm_jax.models.conformer import ConformerConfig
from slm_jax.training.export import write_model
from slm_jax.training.objectives import BestRQObjective
from slm_jax.training.recipes import BestRQRecipe, SpeechEncoderRecipe

ENCODER = ConformerConfig(
  num_layers=2, model_dim=16, num_heads=2, num_mel_bins=16, subsampling_channels=(4, 4)
)
CONFIG = BestRQConfig(
  num_codebooks=3, codebook_size=8, code_dim=4, mask_span=12, mask_probability=0.03
)
RNG = np.random.default_rng(0)
AUDIO = (RNG.normal(size=(2, 16_000)) * 3000).astype(np.int16)
LENGTHS = np.array([16_000, 9_000], np.int32)
BATCH = Batch(audio=AUDIO, audio_lengths=LENGTHS)


def test_codes_are_the_nearest_of_normed_vectors():
  """arXiv:2202.01855, equation 1, every distance written out."""
  features = RNG.normal(size=(2, 10, 5)).astype(np.float32)
  found = codes(jnp.asarray(features), CONFIG)
  assert found.shape == (2, 3, 3)  # 10 features are 3 frames of the encoder
  projection_key, code_key = jax.random.split(jax.random.key(CONFIG.seed))
  projection = nn.initializers.xavier_uniform()(projection_key, (20, 12), jnp.float32)
  books = np.asarray(jax.random.normal(code_key, (3, 8, 4)))
  padded = np.pad(features, ((0, 0), (0, 2), (0, 0))).reshape(2, 3, 20)
  for row in range(2):
    for frame in range(3):
      vectors = (padded[row, frame] @ np.asarray(projection)).reshape(3, 4)
      for book in range(3):
        x = vectors[book] / np.linalg.norm(vectors[book])
        c = books[book] / np.linalg.norm(books[book], axis=1, keepdims=True)
        assert found[row, frame, book] == np.argmin(np.linalg.norm(c - x, axis=1))
  other = codes(jnp.asarray(features), dataclasses.replace(CONFIG, seed=1))
  assert (np.asarray(found) != np.asarray(other)).any()


def test_spans_begin_with_the_given_probability():
  mask = np.ones((400, 200), bool)
  mask[:, 150:] = False
  hidden = np.asarray(hidden_spans(jax.random.key(0), jnp.asarray(mask), CONFIG))
  assert not hidden[:, 150:].any()
  # Past the first span's length a feature is hidden unless none of 12 places began one.
  assert abs(hidden[:, 20:150].mean() - (1 - 0.97**12)) < 0.02
  lengths = np.diff(np.flatnonzero(np.diff(np.pad(hidden[0, :150], 1).astype(int))))[::2]
  assert (lengths[:-1] >= 12).all()


@pytest.fixture(scope="module")
def params():
  return nn.unbox(jax.jit(BestRQObjective(BestRQ(ENCODER, CONFIG)).init)(jax.random.key(0), BATCH))


def run(params, features_of=None):
  tree = {"encoder": params["speech_encoder"], **params["best_rq"]}
  model = BestRQ(ENCODER, CONFIG)
  audio = AUDIO if features_of is None else features_of
  return jax.jit(model.apply)({"params": tree}, audio, LENGTHS, rngs={"best_rq": jax.random.key(3)})


def test_hidden_frames_are_not_seen_and_are_told_from_what_was_there(params):
  frames, labels, hidden, heads = run(params)
  assert frames.shape == (2, 25, 16) and labels.shape == (2, 25, 3) and heads.shape == (3, 16, 8)
  hidden = np.asarray(hidden)
  assert 0 < hidden.sum() and not hidden[1, 15:].any()
  # Other sound under a hidden frame, away from its borders: other codes, the same output.
  row, frame = next(
    (r, t) for r, t in np.argwhere(hidden) if hidden[r, t - 1 : t + 2].all() and 0 < t < 14
  )
  changed = AUDIO.copy()
  changed[row, frame * 640 + 200 : frame * 640 + 400] = 20_000
  other_frames, other_labels, *_ = run(params, changed)
  assert (np.asarray(labels)[row, frame] != np.asarray(other_labels)[row, frame]).any()
  np.testing.assert_allclose(frames, other_frames, atol=1e-5)


def test_the_codes_of_one_batch_can_be_learnt(params):
  objective = BestRQObjective(BestRQ(ENCODER, CONFIG))
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state):
    grad, sums = jax.grad(objective.loss, has_aux=True)(params, BATCH, jax.random.key(5))
    updates, state = optimizer.update(grad, state)
    return optax.apply_updates(params, updates), state, sums

  state, losses = optimizer.init(params), []
  for _ in range(60):
    params, state, sums = step(params, state)
    losses.append(float(sums["loss"] / sums["weight"]))
  assert abs(losses[0] - np.log(8)) < 0.8  # nothing is known yet
  assert losses[-1] < 0.3 * losses[0]
  assert float(sums["correct"] / sums["weight"]) > 0.8


def test_what_it_writes_is_where_ctc_training_begins(params, tmp_path, tiny_tokenizer):
  recipe = BestRQRecipe(config=ENCODER, quantizer=CONFIG)
  write_model(recipe, params, str(tmp_path / "encoder"))
  encoder = load_speech_encoder(tmp_path / "encoder")
  assert encoder.tokenizer is None and encoder(AUDIO, LENGTHS).ctc_logits is None
  with_head = dataclasses.replace(ENCODER, vocab_size=64)
  built = SpeechEncoderRecipe(
    config=with_head, tokenizer=str(tiny_tokenizer), pretrained=str(tmp_path / "encoder")
  ).build()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01),
    {**built.loaded["speech_encoder"]},
    jax.device_get(params["speech_encoder"]),
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(codebook_size=0), "codebook_size=0"),
    (dict(mask_span=5), "mask_span=5"),
    (dict(mask_probability=0.0), "mask_probability=0.0"),
  ],
  ids=str,
)
def test_bad_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)


def test_a_ctc_head_has_no_place_in_it():
  with pytest.raises(ValueError, match="vocab_size=9"):
    BestRQRecipe(config=dataclasses.replace(ENCODER, vocab_size=9), quantizer=CONFIG)
