"""Finds shapes of batches whose examples share rows of the LM.

With rows of their own, an example's speech, instruction and target are padded each to a declared
length. Sharing rows leaves the LM only the sums to pad, which vary little; so a shape is but a length
of audio, and its rows of the LM are a little longer than its examples fill on average.
"""

from collections.abc import Mapping

import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.data import bucket_search, lm_rows
from slm_jax.data.bucket_search import NAMES, edges, only_within
from slm_jax.data.length_buckets import first_that_holds
from slm_jax.errors import UserError

# How much longer rows are than what their examples fill on average.
ROOM = 0.04
_AUDIO_EDGES = 112
# Of the share of a batch that `padding` plays through.
_SHARE_ROWS = 16
_HOP = 160


def search(
  sizes: np.ndarray,
  lengths: Mapping[str, int],
  count: int,
  examples: int,
  positions_per_second: float,
) -> list[dict[str, int]]:
  """At most `count` shapes with `lm_inputs` and `lm_targets`, shortest first, the last of `lengths`.

  Args:
    sizes: int [N, 3] of the features audio, inputs, targets; N > 0. Longer ones are left out.
    lengths: longest audio, inputs and targets.
    count: at least 1.
    examples: K that share a row.
    positions_per_second: that the LM has of speech.

  Raises:
    ValueError: no example is within `lengths`.
  """
  longest = {name: int(lengths[name]) for name in NAMES}
  sizes = only_within(sizes, longest)
  audio = _audio_lengths(sizes[:, 0], count - 1, longest["audio"])
  bucket = np.searchsorted(audio, sizes[:, 0])
  taken = _lm_sizes(sizes, positions_per_second)
  shapes = []
  for i, samples in enumerate([*audio.tolist(), longest["audio"]]):
    within = bucket == i
    shape, mean = longest, np.array([np.inf, np.inf])
    if within.any():
      mean = taken[within].mean(axis=0)
      if i < len(audio):
        shape = dict(zip(NAMES, sizes[within].max(axis=0).tolist(), strict=True))
        shape["audio"] = samples
    elif i < len(audio):
      continue
    least = _lm_sizes(np.array([list(shape.values())]), positions_per_second)[0]
    room = np.clip(np.ceil(examples * (1 + ROOM) * mean), least, examples * least).astype(int)
    shapes.append(shape | dict(zip(lm_rows.LM_LENGTHS, room.tolist(), strict=True)))
  return shapes


def suggest(
  sizes: np.ndarray,
  lengths: Mapping[str, int],
  count: int,
  examples: int,
  positions_per_second: float,
) -> str:
  """Shapes as gin bindings of `DatasetConfig`, with the padding they leave; arguments as of `search`.

  Raises:
    UserError: no example is within `lengths`, or they lack one of audio, inputs and targets.
  """
  if missing := sorted(set(NAMES) - set(lengths)):
    raise UserError(f"--examples_per_lm_row: --task_feature_lengths lacks {missing}")
  try:
    buckets = search(sizes, lengths, count, examples, positions_per_second)
  except ValueError as error:
    raise UserError(f"--suggest_buckets: {error}") from error
  within = only_within(sizes, lengths)
  found = padding(within, buckets, examples, positions_per_second)
  lines = [f"DatasetConfig.examples_per_lm_row = {examples}", "DatasetConfig.length_buckets = ("]
  lines += [f"    {bucket}," for bucket in buckets]
  lines += [")", "# padding of audio frames and of LM positions:"]
  lines.append(f"#   {found['audio']:6.1%} {found['lm']:6.1%}  these {len(buckets)} shapes")
  whole = {name: int(lengths[name]) for name in NAMES}
  longest = bucket_search.compare(within, [whole], positions_per_second)["longest"]
  lines.append(
    f"#   {longest['audio']:6.1%} {longest['lm']:6.1%}  every row as long as TASK_FEATURE_LENGTHS"
  )
  return "\n".join(lines)


def padding(
  sizes: np.ndarray, buckets: list[dict[str, int]], examples: int, positions_per_second: float
) -> dict[str, float]:
  """Shares of padding, `audio` and `lm`, of batches formed as training does from these examples in turn."""
  chosen = first_that_holds(sizes, [{name: bucket[name] for name in NAMES} for bucket in buckets])
  taken = _lm_sizes(sizes, positions_per_second)
  real, places = np.zeros(2), np.zeros(2)
  waiting: list[list[int]] = [[] for _ in buckets]
  for example, i in enumerate(chosen.tolist()):
    queue, bucket = waiting[i], buckets[i]
    queue.append(example)
    if len(queue) < _SHARE_ROWS + lm_rows.CHOICE * examples:
      continue
    limits, num_rows = [bucket[name] for name in lm_rows.LM_LENGTHS], _SHARE_ROWS // examples
    found = [k for k in lm_rows.fill(taken[queue], limits, examples, num_rows) if k is not None]
    of_batch = [queue[k] for k in found]
    waiting[i] = [queue[k] for k in range(len(queue)) if k not in set(found)]
    real += sizes[of_batch, 0].sum(), taken[of_batch].sum()
    places += _SHARE_ROWS * bucket["audio"], num_rows * sum(limits)
  return dict(zip(("audio", "lm"), (1 - real / np.maximum(places, 1)).tolist(), strict=True))


def _lm_sizes(sizes: np.ndarray, positions_per_second: float) -> np.ndarray:
  """int [N, 3] -> positions int [N, 2] of the LM's encoder and decoder."""
  speech = np.ceil(positions_per_second * sizes[:, 0] / SAMPLE_RATE).astype(int)
  return np.stack([speech + sizes[:, 1], sizes[:, 2]], axis=1)


def _audio_lengths(samples: np.ndarray, count: int, longest: int) -> np.ndarray:
  """At most `count` lengths below the longest, growing, that leave least padding (dynamic programming)."""
  ordered = np.sort(samples)
  found = edges(np.minimum(-(-ordered // _HOP) * _HOP, longest), _AUDIO_EDGES)
  ends = np.array([0, *np.searchsorted(ordered, found, side="right")])
  size = len(found)
  cost = np.full((size + 1, size + 1), np.inf)
  for i in range(size):
    cost[i, i + 1 :] = found[i:] * (ends[i + 1 :] - ends[i])
  total = np.append(0.0, np.full(size, np.inf))
  came = []
  # The longest, if it is among them, is not one of `count`.
  for _ in range(min(count + (found[-1] == longest), size)):
    through = total[:, None] + cost
    came.append(through.argmin(axis=0))
    total = through.min(axis=0)
  lengths, j = [], size
  for step in reversed(came):
    lengths.append(int(found[j - 1]))
    j = int(step[j])
  return np.array(sorted({n for n in lengths if n < longest}), int)
