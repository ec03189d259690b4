"""In-batch sampled softmax against plain loops; equal names never compete."""

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.entities import encode_entities
from slm_jax.training.contrastive_loss import own_and_others, sampled_softmax

# Rows: two names; one of the first's; the same name twice; none.
NAMES = [["Anna", "Bo"], ["Bo"], ["Cy", "Cy"], []]


def flat(names: list[list[str]], places: int) -> tuple[jax.Array, jax.Array]:
  texts = np.zeros((len(names) * places, 8), np.int32)
  real = np.zeros(len(texts), bool)
  for b, row in enumerate(names):
    if row:
      texts[b * places : b * places + len(row)] = encode_entities(row, 8)
      real[b * places : b * places + len(row)] = True
  return jnp.asarray(texts), jnp.asarray(real)


def test_own_and_others_are_the_distinct_names():
  texts, real = flat(NAMES, 2)
  own, others = (np.asarray(x) for x in own_and_others(texts, real, 4))
  # Places of Anna, Bo, (nothing, Bo again), Cy: repetitions and empty places are neither.
  places = [NAMES[p // 2][p % 2] if p % 2 < len(NAMES[p // 2]) else None for p in range(8)]
  for b, row in enumerate(NAMES):
    assert sorted(places[p] for p in np.flatnonzero(own[b])) == sorted(set(row))
    assert sorted(places[p] for p in np.flatnonzero(others[b])) == sorted(
      {"Anna", "Bo", "Cy"} - set(row)
    )


def test_loss_is_that_of_loops_over_names():
  texts, real = flat(NAMES, 2)
  logits = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32) * 3
  own, others = own_and_others(texts, real, 4)
  loss, correct, count = sampled_softmax(jnp.asarray(logits), own, others)
  expected, above, number = 0.0, 0, 0
  for b in range(4):
    wrong = logits[b][np.asarray(others[b])]
    for p in np.flatnonzero(own[b]):
      right = np.exp(logits[b, p])
      expected -= np.log(right / (right + np.exp(wrong).sum()))
      above += logits[b, p] > wrong.max()
      number += 1
  np.testing.assert_allclose([loss, correct, count], [expected, above, number], rtol=1e-5)


def test_neither_repetitions_nor_empty_places_have_a_gradient():
  texts, real = flat(NAMES, 2)
  masks = own_and_others(texts, real, 4)
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8)), jnp.float32)
  gradient = np.asarray(jax.grad(lambda x: sampled_softmax(x, *masks)[0])(logits))
  counted = np.asarray(masks[0] | masks[1])
  assert (gradient[~counted] == 0).all()
  # A row without names pushes nothing away; the others do.
  assert (gradient[3] == 0).all() and (gradient[:3][counted[:3]] != 0).all()


def test_a_batch_without_names_is_no_loss():
  texts, real = flat([[], []], 2)
  masks = own_and_others(texts, real, 2)
  found = jax.value_and_grad(lambda x: sampled_softmax(x, *masks)[0])(jnp.ones((2, 4)))
  assert float(found[0]) == 0 and (np.asarray(found[1]) == 0).all()
