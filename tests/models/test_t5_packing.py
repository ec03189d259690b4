"""Several examples in one row equal the same examples in rows of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.t5 import T5, T5Config

MT5 = T5Config(
  vocab_size=32,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=2,
  # Small, so that distances within a segment meet both kinds of buckets.
  relpos_num_buckets=8,
  relpos_max_distance=6,
)
UMT5 = dataclasses.replace(MT5, per_layer_relpos=True)
# (source, target) lengths of the examples of each row; what is left of a row is padding.
ROWS = (((5, 3), (7, 4)), ((9, 2), (2, 5)))
S, T = 13, 8
RNG = np.random.default_rng(0)
EXAMPLES = [
  [
    (RNG.normal(size=(s, 16)).astype(np.float32), np.append(0, RNG.integers(2, 32, t - 1)))
    for s, t in row
  ]
  for row in ROWS
]


def packed() -> dict[str, np.ndarray]:
  arrays = {
    # Padding is loud and claims to belong to the first example.
    "embeddings": np.full((2, S, 16), 1e3, np.float32),
    "mask": np.zeros((2, S), bool),
    "segment_ids": np.ones((2, S), np.int32),
    "tokens": np.full((2, T), 7, np.int32),
    "decoder_segment_ids": np.zeros((2, T), np.int32),
  }
  for row, examples in enumerate(EXAMPLES):
    source = target = 0
    for number, (embeddings, tokens) in enumerate(examples, start=1):
      here = slice(source, source := source + len(embeddings))
      arrays["embeddings"][row, here] = embeddings
      arrays["mask"][row, here] = True
      arrays["segment_ids"][row, here] = number
      here = slice(target, target := target + len(tokens))
      arrays["tokens"][row, here] = tokens
      arrays["decoder_segment_ids"][row, here] = number
  return arrays


def run(config: T5Config, params, inputs: dict, *, segments: bool):
  """(memory, hidden, gradient to the embeddings of a fixed function of hidden)."""

  def forward(embeddings):
    def both(t5: T5):
      of_source, of_target = {}, {}
      if segments:
        of_source = {"segment_ids": inputs["segment_ids"]}
        of_target = {**of_source, "decoder_segment_ids": inputs["decoder_segment_ids"]}
      memory = t5.encode(embeddings, inputs["mask"], **of_source)
      return memory, t5.decode(memory, inputs["mask"], inputs["tokens"], **of_target)

    memory, hidden = nn.apply(both, T5(config))({"params": params})  # pyright: ignore
    real = inputs["decoder_segment_ids"] > 0
    return jnp.sum(jnp.sin(3 * hidden) * real[..., None]), (memory, hidden)

  gradient, (memory, hidden) = jax.jit(jax.grad(forward, has_aux=True))(inputs["embeddings"])
  return np.asarray(memory), np.asarray(hidden), np.asarray(gradient)


@pytest.mark.parametrize("config", [MT5, UMT5], ids=["mt5", "umt5"])
def test_a_packed_row_equals_its_parts(config):
  inputs = packed()
  source_tokens = inputs["segment_ids"]  # any ids will do to make parameters
  init = jax.jit(T5(config).init)
  variables = init(jax.random.key(0), source_tokens, inputs["mask"], inputs["tokens"])
  params = nn.unbox(variables["params"])
  memory, hidden, gradient = run(config, params, inputs, segments=True)
  # All examples one under the other: one more compilation, not four.
  alone = {
    "embeddings": np.zeros((4, 9, 16), np.float32),
    "mask": np.zeros((4, 9), bool),
    "tokens": np.zeros((4, 5), np.int32),
    "decoder_segment_ids": np.zeros((4, 5), np.int32),
  }
  examples = [example for row in EXAMPLES for example in row]
  for index, (embeddings, tokens) in enumerate(examples):
    alone["embeddings"][index, : len(embeddings)] = embeddings
    alone["mask"][index, : len(embeddings)] = True
    alone["tokens"][index, : len(tokens)] = tokens
    alone["decoder_segment_ids"][index, : len(tokens)] = 1
  expected = run(config, params, alone, segments=False)
  for index, (embeddings, tokens) in enumerate(examples):
    row, number = index // 2, index % 2 + 1
    source = inputs["mask"][row] & (inputs["segment_ids"][row] == number)
    target = inputs["decoder_segment_ids"][row] == number
    s, t = len(embeddings), len(tokens)
    np.testing.assert_allclose(memory[row, source], expected[0][index, :s], atol=1e-5)
    np.testing.assert_allclose(hidden[row, target], expected[1][index, :t], atol=1e-5)
    np.testing.assert_allclose(gradient[row, source], expected[2][index, :s], atol=1e-4)
  assert np.isfinite(hidden).all()
  assert not gradient[~inputs["mask"]].any()
  # The ids are what keeps examples apart.
  _, mixed, _ = run(config, params, inputs, segments=False)
  assert np.abs(mixed - hidden).max() > 1e-2


def test_segments_of_one_side_alone_are_refused():
  inputs = packed()
  arguments = (inputs["embeddings"], inputs["mask"], inputs["tokens"])
  with pytest.raises(ValueError, match="decoder_segment_ids"):
    T5(MT5).apply({}, *arguments, segment_ids=inputs["segment_ids"], method="decode")
