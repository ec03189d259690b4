"""Several adapters over one pair of bases, held side by side so that each row of a batch has its own.

N slots, B batch, T frames, E their width, P prompt length, S' positions of the LM's encoder.
"""

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.errors import UserError
from slm_jax.models.slm import SLM


class AdapterSlots:
  """Adapters of one shape under their names, as arrays [N, ...].

  Putting one in, taking one out and choosing among them change numbers, never shapes: nothing is
  compiled again.
  """

  def __init__(self, adapters: dict[str, dict], *, num_slots: int | None = None):
    """Puts adapters (name → nested parameters, all of one shape) into the first slots.

    `num_slots` leaves room for more; None is as many as there are adapters.

    Raises:
      UserError: shapes differ, or there are more adapters than slots.
    """
    first = next(iter(adapters.values()))
    count = num_slots or len(adapters)
    self._stack = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), jnp.float32), first)
    self._names: list[str | None] = [None] * count
    self._lock = threading.Lock()
    for name, params in adapters.items():
      self.put(name, params)

  @property
  def names(self) -> list[str]:
    """Of the adapters that are there."""
    return [name for name in self._names if name is not None]

  @property
  def stack(self) -> dict:
    """The parameters, [N, ...]."""
    return self._stack

  def slot(self, name: str) -> int:
    """Where an adapter is; raises UserError if it is not."""
    if name not in self.names:
      raise UserError(f"no adapter {name!r}; there are {', '.join(sorted(self.names))}")
    return self._names.index(name)

  def put(self, name: str, params: dict) -> int:
    """Puts an adapter into its name's slot, or a free one; returns which.

    Batches that run already keep the numbers they began with.

    Raises:
      UserError: its shape is not that of the others, or no slot is free.
    """
    _check_same_shape(name, params, self._stack)
    with self._lock:
      if name not in self._names and None not in self._names:
        raise UserError(
          f"no free slot for the adapter {name!r}: there are {len(self._names)}, of "
          f"{', '.join(sorted(self.names))}; take one out or begin with more slots"
        )
      slot = self._names.index(name if name in self._names else None)
      self._stack = _put(self._stack, jax.tree.map(np.float32, params), slot)
      self._names[slot] = name
    return slot

  def remove(self, name: str) -> None:
    """Frees an adapter's slot; raises UserError if there is none of that name."""
    with self._lock:
      self._names[self.slot(name)] = None


@jax.jit
def _put(stack: dict, params: dict, slot: jax.Array) -> dict:
  return jax.tree.map(lambda all_, one: all_.at[slot].set(one), stack, params)


def _check_same_shape(name: str, params: dict, stack: dict) -> None:
  ours, theirs = (
    {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
    for tree in (params, stack)
  )
  theirs = {path: shape[1:] for path, shape in theirs.items()}
  if different := sorted(p for p in ours.keys() | theirs if ours.get(p) != theirs.get(p)):
    path = different[0]
    raise UserError(
      f"the adapter {name!r} cannot share a process with the others: {path} has the shape {ours.get(path)}, "
      f"theirs {theirs.get(path)}; adapters of one server have one AdapterConfig"
    )


@functools.partial(jax.jit, static_argnums=0)
def encode(
  model: SLM,
  bases: dict,
  stack: dict,
  slots: jax.Array,
  audio: jax.Array,
  lengths: jax.Array,
  prompt: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Like `SLM.encode`, each row through the adapter of its slot.

  The bases run over the whole batch, an adapter over one row after the other: the copies that a
  batched product would make of it are many times its rows. So a row does not depend on whose rows
  stand beside it.

  Args:
    model: of all adapters.
    bases: {speech_encoder, language_model}.
    stack: as of `AdapterSlots`.
    slots: int32 [B].
    audio, lengths, prompt: int16 [B, S], int32 [B], int32 [B, P].

  Returns:
    (memory [B, S', D], mask bool [B, S']).
  """
  # No adapter takes part before the first trained weight.
  frames, mask = _apply(model, bases, {}, audio, lengths, method="frozen_frames")

  def join(row) -> Any:
    slot, frames, mask, prompt = row
    adapter = jax.tree.map(lambda x: x[slot], stack)
    found = _apply(
      model, bases, adapter, frames[None], mask[None], prompt[None], method="join_inputs"
    )
    return jax.tree.map(lambda x: x[0], found)

  embeddings, mask = jax.lax.map(join, (slots, frames, mask, prompt))
  return _apply(model, bases, {}, embeddings, mask, method="encode_joined"), mask


def _apply(model: SLM, bases: dict, adapter: dict, *inputs, method: str) -> Any:
  params = {**bases, "adapter": adapter} if adapter else bases
  return model.apply({"params": params}, *inputs, method=method)
