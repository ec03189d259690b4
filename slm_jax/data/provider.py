"""A SeqIO task or mixture that is about to be read: whether it can be, and what is in it."""

from hashlib import sha256
from pathlib import Path

import seqio
import tensorflow as tf

from slm_jax.data.seqio_cache import MANIFEST
from slm_jax.errors import UserError


def hide_accelerators() -> None:
  """Keeps TensorFlow on the CPU: it would otherwise claim the memory of JAX's devices."""
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")


def contents(provider: seqio.Task | seqio.Mixture, split: str, use_cached: bool) -> dict[str, dict]:
  """Task → its rate in the mixture, number of examples, and a digest of its cache's shards."""
  found = {}
  for task in seqio.get_subtasks(provider):
    rate = provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1.0
    cached = use_cached and task.supports_caching and task.cache_dir
    manifest = Path(task.cache_dir or "") / MANIFEST
    found[task.name] = {
      "rate": rate,
      "examples": task.num_input_examples(split) if not cached else task.get_cached_stats(split),
      "cache": sha256(manifest.read_bytes()).hexdigest() if cached and manifest.is_file() else None,
    }
  return found


def open_provider(name: str, split: str, use_cached: bool) -> seqio.Task | seqio.Mixture:
  """The task or mixture of a name; raises UserError if it has no such split, or lacks a cache."""
  provider = seqio.get_mixture_or_task(name)
  if split not in provider.splits:
    raise UserError(f"{name} has no split {split!r}; it has {sorted(provider.splits)}")
  missing = [
    t.name
    for t in seqio.get_subtasks(provider)
    if use_cached and t.supports_caching and not t.cache_dir
  ]
  if missing:
    folders = seqio.utils.get_global_cache_dirs()
    raise UserError(
      f"no offline cache of {missing} in {folders}; make it with slm_jax tasks or set the folder"
    )
  return provider
