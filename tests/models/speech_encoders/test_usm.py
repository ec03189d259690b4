"""The whole encoder: sizes of the presets, padding, input types, SpecAugment, every axis named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.config import build, load
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.partitioning import RULES
from slm_jax.models.speech_encoders.usm import USMEncoder

CONFIG = ConformerConfig(
  num_layers=2, model_dim=16, num_heads=2, num_mel_bins=16, subsampling_channels=(4, 4),
  vocab_size=9, attention="local", left_context=4, right_context=3,
)  # fmt: skip
RNG = np.random.default_rng(0)
AUDIO = (RNG.normal(size=(3, 9000)) * 3000).astype(np.int16)
LENGTHS = np.array([9000, 6400, 1], np.int32)


@pytest.fixture(scope="module")
def params():
  shapes = {"params": nn.unbox(abstract(CONFIG))}
  return jax.tree.map(lambda x: RNG.normal(0.1, 0.3, x.shape).astype(np.float32), shapes)


def encode(params, audio=AUDIO, lengths=LENGTHS, config=CONFIG):
  return jax.jit(USMEncoder(config).apply)(params, audio, lengths)


def test_output_shapes(params):
  out = encode(params)
  assert CONFIG.num_frames(9000) == 15
  assert out.frames.shape == (3, 15, 16) and out.ctc_logits.shape == (3, 15, 9)
  assert out.ctc_logits.dtype == jnp.float32
  assert out.mask.sum(axis=1).tolist() == [CONFIG.num_frames(n) for n in LENGTHS] == [15, 10, 1]
  features, mask = USMEncoder(CONFIG).apply({}, AUDIO, LENGTHS, method="features")
  assert features.shape == (3, 57, 16) and mask.sum(axis=1).tolist() == [57, 40, 1]


def test_padding_and_neighbours_change_nothing(params):
  real = np.arange(9000) < LENGTHS[:, None]
  first = encode(params)
  loud = encode(params, np.where(real, AUDIO, 20_000).astype(np.int16))
  alone = encode(params, AUDIO[1:2, :6400], LENGTHS[1:2])
  np.testing.assert_allclose(first.frames, loud.frames, atol=1e-5)
  np.testing.assert_allclose(first.ctc_logits, loud.ctc_logits, atol=1e-5)
  np.testing.assert_allclose(first.frames[1:2, :10], alone.frames, atol=1e-5)
  assert not np.asarray(first.frames)[~np.asarray(first.mask)].any()


def test_int16_equals_float(params):
  first = encode(params)
  second = encode(params, AUDIO / np.float32(32768))
  np.testing.assert_allclose(first.frames, second.frames, atol=1e-5)


def test_no_head_without_a_vocabulary(params):
  config = dataclasses.replace(CONFIG, vocab_size=0)
  headless = {k: v for k, v in params["params"].items() if k != "ctc_head"}
  assert set(abstract(config)) == set(headless)
  out = encode({"params": headless}, config=config)
  assert out.ctc_logits is None
  np.testing.assert_allclose(out.frames, encode(params).frames, atol=1e-5)


def test_spec_augment_acts_in_training_only(params):
  config = dataclasses.replace(CONFIG, spec_augment=SpecAugmentConfig())

  @jax.jit
  def frames(seed):
    rngs = {"spec_augment": jax.random.key(seed)}
    return USMEncoder(config).apply(params, AUDIO, LENGTHS, train=True, rngs=rngs).frames

  np.testing.assert_array_equal(encode(params, config=config).frames, encode(params).frames)
  np.testing.assert_array_equal(frames(1), frames(1))
  assert np.abs(frames(1) - frames(2)).max() > 1e-3


def test_bfloat16_computes_near_float32(params):
  out = encode(params, config=dataclasses.replace(CONFIG, dtype="bfloat16"))
  assert out.frames.dtype == jnp.bfloat16 and out.ctc_logits.dtype == jnp.float32
  full = encode(params)
  np.testing.assert_allclose(out.frames.astype(jnp.float32), full.frames, atol=0.15)


def abstract(config: ConformerConfig):
  audio = jax.ShapeDtypeStruct((1, 16_000), jnp.int16)
  lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(USMEncoder(config).init, jax.random.key(0), audio, lengths)["params"]


def test_every_parameter_names_its_axes():
  boxes = jax.tree.leaves(
    abstract(CONFIG), is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  )
  for box in boxes:
    assert isinstance(box, nn.LogicallyPartitioned)
    assert len(box.names) == len(box.value.shape)
    assert all(name in RULES for name in box.names), box.names


@pytest.mark.parametrize(
  ("name", "shape", "low", "high"),
  [("usm_0_6b", (24, 1024, 8), 600e6, 620e6), ("usm_2b", (32, 1536, 16), 1.8e9, 2.0e9)],
)
def test_usm_sizes(name, shape, low, high):
  """USM, Table 1: 0.6B and 2B parameters; attention in chunks of 8 s (ibid. §2.3)."""
  recipe = "SpeechEncoderRecipe"
  load([f"models/{name}.gin"], [f"train.model=@{recipe}()", f"{recipe}.config=@ConformerConfig()"])
  config = build("ConformerConfig")
  assert (config.num_layers, config.model_dim, config.num_heads) == shape
  assert config.chunk_size * config.frame_samples == 8 * 16_000 and config.attention == "chunk"
  count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(abstract(config))))
  assert low <= count <= high
