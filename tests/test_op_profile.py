"""A profile by operation: every instant is counted once, and what a product costs stands at the part it came from."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import op_profile

ROWS, WIDTH, HIDDEN, LAYERS = 96, 64, 160, 3
PARTS = {"stack": r"\bstack\b", "head": r"\bhead\b"}


def tiny(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
  """Gradient of a stack of layers, run by a loop, under a head."""

  def loss(x):
    with jax.named_scope("stack"):
      x = jax.lax.scan(lambda y, _: (jax.nn.softmax(y @ w), None), x, None, length=LAYERS)[0]
    with jax.named_scope("head"):
      return jnp.sum((x @ v) ** 2)

  return jax.grad(loss)(x)


@pytest.fixture(scope="module")
def profiled() -> list[dict]:
  key = jax.random.key(0)
  arrays = [jax.random.normal(key, s) for s in ((ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH, HIDDEN))]
  compiled = jax.jit(tiny).lower(*arrays).compile()
  jax.block_until_ready(compiled(*arrays))
  events = op_profile.trace(lambda: compiled(*arrays), "jit_tiny")
  return op_profile.profile(events, op_profile.operations(compiled.as_text()), PARTS)


def test_shares_are_those_of_the_whole(profiled):
  assert sum(row["share"] for row in profiled) == pytest.approx(1)
  assert all(row["seconds"] > 0 for row in profiled)
  assert {"stack", "head"} <= {row["part"] for row in profiled}
  assert "container" not in {row["kind"] for row in profiled}


@pytest.mark.parametrize(
  ("part", "flops"),
  # Forward, and backward to what the product read.
  [("stack", 2 * LAYERS * 2 * ROWS * WIDTH * WIDTH), ("head", 2 * 2 * ROWS * WIDTH * HIDDEN)],
)
def test_products_are_counted_where_they_were_made(part, flops, profiled):
  (row,) = (row for row in profiled if (row["part"], row["kind"]) == (part, "product"))
  assert row["gigaflop_per_second"] * row["seconds"] * 1e9 == pytest.approx(flops)


def test_an_instant_is_counted_once():
  # b runs while a does, on another thread; c twice at once.
  events = [("a", 1.0, 4.0), ("b", 2.0, 4.0), ("c", 6.0, 7.0), ("c", 6.0, 8.0)]
  assert op_profile.shares(events) == pytest.approx({"a": 2.0, "b": 1.0, "c": 2.0})


def test_the_first_part_that_fits_counts():
  parts = {"inner": "b/c", "outer": "b"}
  found = [op_profile.part_of(path, parts) for path in ("a/b/c", "a/b/d", "a")]
  assert found == ["inner", "outer", "other"]


def test_the_table_says_what_products_reach(profiled):
  lines = op_profile.table(profiled, ceiling=100.0).splitlines()
  assert len(lines) == 1 + len(profiled) and len(set(map(len, map(str.rstrip, lines)))) == 1
  products = [line for line in lines if " product " in line]
  assert products and all("%" in line.split()[-2] for line in products)
