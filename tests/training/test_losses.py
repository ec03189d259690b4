"""Token cross-entropy against PyTorch, in chunks and whole, and the memory it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.training.losses import vocabulary_cross_entropy
from slm_jax.training.sharding import BATCH_SPEC, MeshConfig, make_mesh

B, T, D, V = 8, 7, 16, 64
Z_LOSS = 0.1
CHUNKS = pytest.mark.parametrize("chunk", [0, 1, 3, 7, 9])


def example() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  weights = rng.random((B, T)).astype(np.float32)
  weights[:, 5:] = 0
  return {
    "hidden": rng.normal(size=(B, T, D)).astype(np.float32),
    "kernel": rng.normal(size=(D, V)).astype(np.float32),
    "targets": rng.integers(0, V, (B, T)).astype(np.int32),
    "weights": weights,
  }


def sums_and_gradients(inputs: dict, **options):
  """((loss, correct), gradients to hidden, kernel, weights) of 3 * loss."""

  def scaled(hidden, kernel, weights):
    loss, correct = vocabulary_cross_entropy(hidden, kernel, inputs["targets"], weights, **options)
    return 3 * loss, (loss, correct)

  arguments = (inputs["hidden"], inputs["kernel"], inputs["weights"])
  gradients, sums = jax.grad(scaled, argnums=(0, 1, 2), has_aux=True)(*arguments)
  return sums, gradients


def reference(inputs: dict):
  """The same by PyTorch, in fp64."""
  hidden, kernel, weights = (
    torch.tensor(inputs[name], dtype=torch.float64, requires_grad=True)
    for name in ("hidden", "kernel", "weights")
  )
  logits = hidden @ kernel
  targets = torch.tensor(inputs["targets"]).long()
  losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
  loss = ((losses + Z_LOSS * logits.logsumexp(-1) ** 2) * weights).sum()
  (3 * loss).backward()
  correct = ((logits.argmax(-1) == targets) * weights).sum()
  gradients = [x.grad.numpy() for x in (hidden, kernel, weights)]  # pyright: ignore
  return (loss.item(), correct.item()), gradients


@CHUNKS
def test_loss_count_and_gradients_equal_torch(chunk):
  inputs = example()
  # Some targets are right, or there is nothing to count.
  inputs["targets"][::2] = (inputs["hidden"] @ inputs["kernel"]).argmax(-1)[::2]
  (loss, correct), gradients = sums_and_gradients(inputs, z_loss=Z_LOSS, chunk=chunk)
  (true_loss, true_correct), true_gradients = reference(inputs)
  np.testing.assert_allclose(loss, true_loss, rtol=1e-6)
  np.testing.assert_allclose(correct, true_correct, rtol=1e-6)
  assert 0 < correct < inputs["weights"].sum()
  for ours, theirs in zip(gradients, true_gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
  assert not np.asarray(gradients[0])[inputs["weights"] == 0].any()


@CHUNKS
def test_bfloat16_is_summed_in_fp32(chunk):
  inputs = {**example(), "hidden": jnp.asarray(example()["hidden"], jnp.bfloat16)}
  rounded = {**inputs, "hidden": np.asarray(inputs["hidden"], np.float32)}
  rounded["kernel"] = np.asarray(jnp.asarray(inputs["kernel"], jnp.bfloat16), np.float32)
  (loss, _), gradients = sums_and_gradients(inputs, z_loss=Z_LOSS, chunk=chunk)
  (true_loss, _), true_gradients = reference(rounded)
  np.testing.assert_allclose(loss, true_loss, rtol=1e-6)
  assert [x.dtype for x in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
  for ours, theirs in zip(gradients, true_gradients, strict=True):
    ours = np.asarray(ours, np.float32)
    np.testing.assert_allclose(ours, theirs, atol=1e-2 * np.abs(theirs).max())


def test_a_negative_chunk_is_refused():
  with pytest.raises(ValueError, match="chunk=-1"):
    vocabulary_cross_entropy(**example(), chunk=-1)  # pyright: ignore


MT5 = {"batch": 8, "length": 64, "width": 512, "vocab": 250_112}


def temporaries(chunk: int, *, batch: int, length: int, width: int, vocab: int) -> int:
  """Bytes beside arguments and results of the gradient to hidden states, by the compiler."""
  hidden = jax.ShapeDtypeStruct((batch, length, width), jnp.float32)
  kernel = jax.ShapeDtypeStruct((width, vocab), jnp.float32)
  targets = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  weights = jax.ShapeDtypeStruct((batch, length), jnp.float32)

  def loss(hidden, kernel, targets, weights):
    return vocabulary_cross_entropy(hidden, kernel, targets, weights, chunk=chunk)[0]

  step = jax.jit(jax.grad(loss)).lower(hidden, kernel, targets, weights)
  return step.compile().memory_analysis().temp_size_in_bytes  # pyright: ignore


def test_a_chunk_is_all_that_is_in_memory_of_mt5s_logits():
  logits = 4 * MT5["batch"] * MT5["length"] * MT5["vocab"]  # 512 MB
  # The logits and their own gradient; neither lives beyond this.
  assert logits <= temporaries(0, **MT5) < 2.02 * logits
  for chunk in (8, 16):
    assert temporaries(chunk, **MT5) < 2.1 * logits * chunk / MT5["length"]


def residuals(function, *arguments) -> list[tuple[int, ...]]:
  """Shapes of what the forward pass keeps for the backward pass."""
  _, backward = jax.vjp(function, *arguments)
  return [x.shape for x in jax.tree.leaves(backward) if hasattr(x, "shape")]


@pytest.mark.parametrize("chunk", [0, 3])
def test_nothing_of_the_logits_size_is_kept_for_the_backward_pass(chunk):
  inputs = example()

  def loss(hidden):
    others = (inputs["kernel"], inputs["targets"], inputs["weights"])
    return vocabulary_cross_entropy(hidden, *others, chunk=chunk)[0]

  shapes = residuals(loss, inputs["hidden"])
  assert (B, T, D) in shapes
  assert all(np.prod(shape) <= B * T * D for shape in shapes), shapes


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_frozen_kernel_has_no_gradient_to_compute(chunk):
  inputs = example()

  def loss(hidden, kernel):
    others = (inputs["targets"], inputs["weights"])
    return vocabulary_cross_entropy(hidden, kernel, *others, chunk=chunk)[0]

  products = [
    str(jax.make_jaxpr(jax.grad(loss, argnums))(inputs["hidden"], inputs["kernel"])).count(
      "dot_general["
    )
    for argnums in (0, (0, 1))
  ]
  assert products == [2, 3]  # forward and one or two gradients; nothing is computed twice


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_sharded_vocabulary_equals_a_whole_one_and_is_never_gathered(chunk):
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  inputs = example()
  expected = sums_and_gradients(inputs, z_loss=Z_LOSS, chunk=chunk)
  specs = {"kernel": PartitionSpec("fsdp", "tensor")}
  placed = {
    name: jax.device_put(x, NamedSharding(mesh, specs.get(name, BATCH_SPEC)))
    for name, x in inputs.items()
  }
  step = jax.jit(lambda inputs: sums_and_gradients(inputs, z_loss=Z_LOSS, chunk=chunk))
  compiled = step.lower(placed).compile()
  for ours, theirs in zip(
    jax.tree.leaves(compiled(placed)), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  # Each device has the logits of its rows and its half of the vocabulary, no others.
  assert f",{V // 2}]" in (text := compiled.as_text())
  rows = B // 4
  assert f"f32[{rows},{chunk or T},{V}]" not in text
  assert f"f32[{B},{chunk or T}," not in text
