"""Finds the shapes of batches that leave least padding for given lengths of examples.

Two things are counted, each relative to what the examples fill: positions of the speech encoder
(proportional to samples), and positions of the LM: its encoder's (speech after the length reduction,
and the instruction) and its decoder's. What is minimised is the sum of both.
"""

from collections.abc import Mapping

import numpy as np

from slm_jax.audio.files import SAMPLE_RATE
from slm_jax.data.length_buckets import first_that_holds
from slm_jax.errors import UserError

NAMES: tuple[str, ...] = ("audio", "inputs", "targets")

# A USM-style encoder's 25 frames a second, of which the adapter hears one in four.
POSITIONS_PER_SECOND = 6.25
# Of the batches that would be padded to their own longest row.
RANDOM_BATCH = 32
_AUDIO_EDGES, _TARGET_EDGES = 56, 20
_MAX_SHAPES_OF_AN_AUDIO_LENGTH = 8
# Audio lengths are multiples of a log-mel's hop.
_HOP = 160


def padding(shapes: np.ndarray, sizes: np.ndarray, positions_per_second: float) -> dict[str, float]:
  """Shares of padding: `audio` of the encoder's frames, `lm` of the LM's positions.

  Args:
    shapes, sizes: int [N, 3], (audio, inputs, targets) declared and real.
    positions_per_second: that the LM has of speech.
  """
  places, real = shapes.sum(axis=0), sizes.sum(axis=0)
  rate = np.array([positions_per_second / SAMPLE_RATE, 1.0, 1.0])
  return {
    "audio": float(1 - real[0] / max(places[0], 1)),
    "lm": float(1 - (rate @ real) / max(rate @ places, 1e-9)),
  }


def compare(
  sizes: np.ndarray,
  buckets: list[dict[str, int]],
  positions_per_second: float = POSITIONS_PER_SECOND,
  seed: int = 0,
) -> dict[str, dict[str, float]]:
  """Padding (as of `padding`) of examples in full batches of the buckets, beside two other ways.

  Args:
    sizes: int [N, 3] of the features audio, inputs, targets; the last bucket holds all.
    buckets: shapes, each with all three features.

  Returns:
    "buckets"; "longest": all rows as long as the last bucket; "random": batches of `RANDOM_BATCH`
    rows at random, each as long as its longest row, which need a compilation each.
  """
  limits = np.asarray([[b["audio"], b["inputs"], b["targets"]] for b in buckets])
  ordered = [dict(zip(NAMES, b, strict=True)) for b in limits.tolist()]
  chosen = limits[first_that_holds(sizes, ordered)]
  shuffled = np.random.default_rng(seed).permutation(len(sizes))
  random = np.empty_like(sizes)
  for start in range(0, len(sizes), RANDOM_BATCH):
    rows = shuffled[start : start + RANDOM_BATCH]
    random[rows] = sizes[rows].max(axis=0)
  ways = {"buckets": chosen, "longest": np.broadcast_to(limits[-1], sizes.shape), "random": random}
  return {name: padding(shapes, sizes, positions_per_second) for name, shapes in ways.items()}


def search(
  sizes: np.ndarray,
  lengths: Mapping[str, int],
  count: int,
  positions_per_second: float = POSITIONS_PER_SECOND,
) -> list[dict[str, int]]:
  """At most `count` shapes, cheapest first, the last `lengths`.

  Dynamic programming: audio lengths are cut into ranges, and the examples of each range by their
  targets; instructions are as long as the longest of each part.

  Args:
    sizes: int [N, 3] of the features audio, inputs, targets; N > 0. Longer ones are left out.
    lengths: longest audio, inputs and targets.
    count: at least 1; `lengths` is one of them.

  Raises:
    ValueError: no example is within `lengths`.
  """
  longest = np.array([lengths["audio"], lengths["inputs"], lengths["targets"]])
  sizes = only_within(sizes, lengths)
  sizes = sizes[np.argsort(sizes[:, 0], kind="stable")]
  speech = positions_per_second / SAMPLE_RATE
  lm = float(speech * sizes[:, 0].mean() + sizes[:, 1:].sum(axis=1).mean())
  weights = np.array([1 / max(sizes[:, 0].mean(), 1.0) + speech / lm, 1 / lm, 1 / lm])
  bounds = edges(-(-sizes[:, 0] // _HOP) * _HOP, _AUDIO_EDGES)
  ends = [0, *np.searchsorted(sizes[:, 0], bounds, side="right").tolist()]
  # best[n][j]: (cost, shapes) of the examples up to edge j with n shapes.
  best: list[dict[int, tuple[float, list]]] = [{0: (0.0, [])}]
  best += [{} for _ in range(max(count - 1, 0))]
  for j in range(1, len(ends)):
    for i in range(j):
      audio = min(int(bounds[j - 1]), int(longest[0]))
      parts = _by_targets(sizes[ends[i] : ends[j]], audio, weights)
      for k, (cost, shapes) in enumerate(parts, start=1):
        for n in range(k, len(best)):
          before = best[n - k].get(i)
          if before is not None and before[0] + cost < best[n].get(j, (np.inf,))[0]:
            best[n][j] = (before[0] + cost, before[1] + shapes)
  done = [row[len(ends) - 1] for row in best if len(ends) - 1 in row]
  found = min(done, default=(0.0, []), key=lambda entry: entry[0])[1]
  unique = sorted({*found, tuple(longest.tolist())}, key=lambda s: float(weights @ np.asarray(s)))
  return [dict(zip(NAMES, shape, strict=True)) for shape in unique]


def _by_targets(
  sizes: np.ndarray, audio: int, weights: np.ndarray
) -> list[tuple[float, list[tuple[int, int, int]]]]:
  """(cost, shapes) of examples of one audio length with 1, 2, … shapes."""
  bounds = edges(sizes[:, 2], _TARGET_EDGES)
  order = np.argsort(sizes[:, 2], kind="stable")
  targets, inputs = sizes[order, 2], sizes[order, 1]
  ends = [0, *np.searchsorted(targets, bounds, side="right").tolist()]
  most = np.array([inputs[a:b].max() for a, b in zip(ends, ends[1:], strict=False)])
  size = len(bounds)
  cost = np.full((size + 1, size + 1), np.inf)
  for i in range(size):
    instructions = np.maximum.accumulate(most[i:])
    each = weights[0] * audio + weights[1] * instructions + weights[2] * bounds[i:]
    cost[i, i + 1 :] = each * (np.array(ends[i + 1 :]) - ends[i])
  totals = np.full(size + 1, np.inf)
  totals[0] = 0.0
  came: list[np.ndarray] = []
  found = []
  for _ in range(min(size, _MAX_SHAPES_OF_AN_AUDIO_LENGTH)):
    through = totals[:, None] + cost
    came.append(through.argmin(axis=0))
    totals = through.min(axis=0)
    shapes, j = [], size
    for step in reversed(came):
      i = int(step[j])
      shapes.append((audio, int(most[i:j].max()), int(bounds[j - 1])))
      j = i
    found.append((float(totals[size]), shapes[::-1]))
  return found


def only_within(sizes: np.ndarray, lengths: Mapping[str, int]) -> np.ndarray:
  """The rows of int [N, 3] that no length cuts; raises ValueError if there are none."""
  longest = [lengths["audio"], lengths["inputs"], lengths["targets"]]
  sizes = sizes[np.all(sizes <= longest, axis=1)]
  if not len(sizes):
    raise ValueError(f"no example is within {dict(lengths)}")
  return sizes


def edges(values: np.ndarray, count: int) -> np.ndarray:
  """At most `count` of the values, growing, spread evenly over the sorted ones; the greatest is one."""
  ordered = np.sort(values)
  places = np.linspace(0, len(ordered) - 1, num=min(count, len(ordered))).round().astype(int)
  return np.unique(ordered[places])


def suggest(
  sizes: np.ndarray,
  lengths: Mapping[str, int],
  count: int,
  positions_per_second: float = POSITIONS_PER_SECOND,
) -> str:
  """Shapes as a gin binding of `DatasetConfig.length_buckets`, with the padding they leave.

  Args:
    sizes: int [N, 3] of audio, inputs, targets; 0 for features that the task lacks.
    lengths: TASK_FEATURE_LENGTHS; may lack features.
    count: at most so many shapes.

  Raises:
    UserError: no example is within `lengths`.
  """
  whole = {name: int(lengths.get(name, sizes[:, i].max(initial=0))) for i, name in enumerate(NAMES)}
  within = sizes[np.all(sizes <= list(whole.values()), axis=1)]
  if not len(within):
    raise UserError(f"--suggest_buckets: no example is within {dict(lengths)}")
  buckets = search(within, whole, count, positions_per_second)
  lines = ["DatasetConfig.length_buckets = ("]
  lines += [f"    { ({name: bucket[name] for name in lengths}) }," for bucket in buckets[:-1]]
  lines += ["    %TASK_FEATURE_LENGTHS,", ")", "# padding of audio frames and of LM positions:"]
  says = {
    "buckets": f"these {len(buckets)} shapes",
    "longest": "every row as long as TASK_FEATURE_LENGTHS",
    "random": f"batches of {RANDOM_BATCH} at random, as long as their longest",
  }
  for name, shares in compare(within, buckets, positions_per_second).items():
    lines.append(f"#   {shares['audio']:6.1%} {shares['lm']:6.1%}  {says[name]}")
  return "\n".join(lines)
