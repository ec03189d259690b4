"""Decoding a batch that is spread over a mesh, with weights that are."""

import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding

from slm_jax.models import decoding
from slm_jax.models.decoding import GenerationConfig
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.partitioning import parameter_shardings
from slm_jax.models.t5 import T5, T5Config
from slm_jax.training.sharding import BATCH_SPEC, MeshConfig, make_mesh

CONFIG = T5Config(
  vocab_size=64,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=48,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
ROWS, LENGTH = 8, 8
RNG = np.random.default_rng(0)
MASK = np.arange(9) < RNG.integers(1, 10, (ROWS, 1))
TOKENS = np.where(MASK, RNG.integers(2, 64, (ROWS, 9)), 0).astype(np.int32)
PREFIX = np.where(np.arange(3) < RNG.integers(0, 4, (ROWS, 1)), 5, 0).astype(np.int32)
LIMITS = RNG.integers(1, LENGTH + 1, ROWS).astype(np.int32)


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
  """(on one device, spread over 8)."""

  def init() -> dict:
    return T5(CONFIG).init(jax.random.key(0), TOKENS, MASK, TOKENS)["params"]

  params = nn.unbox(jax.jit(init)())
  params["decoder"]["logits_dense"]["kernel"] *= 3.0
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  spread = jax.device_put(params, parameter_shardings(jax.eval_shape(init), mesh))
  return LanguageModel(CONFIG, params), LanguageModel(CONFIG, spread)


def spread_over(lm: LanguageModel, array: np.ndarray) -> jax.Array:
  mesh = lm.params["token_embedder"]["embedding"].sharding.mesh
  return jax.device_put(array, NamedSharding(mesh, BATCH_SPEC))


def test_the_front_answers_as_on_one_device(models):
  alone, spread = models
  options = {"max_new_tokens": LENGTH, "prefix": PREFIX, "max_lengths": LIMITS}
  expected = alone.generate(tokens=TOKENS, **options)
  found = spread.generate(tokens=spread_over(spread, TOKENS), **options)
  np.testing.assert_array_equal(found.ids, expected.ids)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize(
  "options",
  [{}, {"num_beams": 4}, {"temperature": 1.0, "num_return_sequences": 2}],
  ids=["greedy", "beams", "draws"],
)
def test_every_device_keeps_the_cache_of_its_rows(models, options):
  alone, spread = models
  config = GenerationConfig(max_new_tokens=LENGTH, **options)
  memory = np.asarray(alone.encode(tokens=TOKENS))
  given = (PREFIX, LIMITS)
  expected = decoding._generate(CONFIG, config, None, alone.params, memory, MASK, *given, 0)

  inputs = [spread_over(spread, x) for x in (memory, MASK, *given)]
  rows = decoding._row_sharding(inputs[1])
  lowered = decoding._generate.lower(CONFIG, config, rows, spread.params, *inputs, 0)
  compiled = lowered.compile()
  found = compiled(spread.params, *inputs, 0)
  np.testing.assert_array_equal(found.ids, expected.ids)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)

  # Of 8 rows and 4 heads, the 8 devices of the mesh (4 x 2) hold 2 and 2: [L, B, K, P + T, N, H].
  hlo = compiled.as_text()
  beams = max(config.num_beams, config.num_return_sequences)
  assert f"f32[2,2,{beams},{3 + LENGTH},2,8]" in hlo
  gathered = re.findall(r"= \S*f32\[([\d,]+)\]\S* all-gather\(", hlo)
  assert gathered, "the weights are gathered"
  assert max(shape.count(",") for shape in gathered) < 4, "but neither keys nor values"
