"""How far a score would stray with other examples: percentile bootstrap over texts.

R resamples, N texts, K statistics of a text.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from slm_jax.evaluation.statistics import Statistics

_BLOCK = 2_000_000  # counts held at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
  """R sets of N texts drawn with replacement; the same for every system, which makes differences paired."""

  resamples: int = 1_000
  seed: int = 0
  confidence: float = 0.95

  def __post_init__(self):
    if self.resamples < 1 or not 0 < self.confidence < 1:
      raise ValueError(
        f"{self.resamples=}, {self.confidence=}: expected at least 1, and a share below 1"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """Two systems' scores on the same texts, percent.

  Attributes:
    value: the first's score minus the second's.
    interval: of the difference.
    p: two-sided, from the resamples on the other side of no difference.
  """

  value: float
  interval: tuple[float, float]
  p: float

  @property
  def significant(self) -> bool:
    """Whether the interval leaves no difference out."""
    low, high = self.interval
    return low > 0 or high < 0


def resampled(statistics: Statistics, resampling: Resampling) -> np.ndarray:
  """The score of each resample, percent [R]."""
  rows = statistics.rows
  return np.concatenate(
    [statistics.value(counts @ rows) for counts in _counts(len(rows), resampling)]
  )


def interval(statistics: Statistics, resampling: Resampling) -> tuple[float, float]:
  """Percentile interval of a score, percent."""
  return _percentiles(resampled(statistics, resampling), resampling)


def paired_difference(first: Statistics, second: Statistics, resampling: Resampling) -> Difference:
  """The difference of two systems on the same texts.

  Raises ValueError unless they are of one metric and equally many texts.
  """
  if first.metric != second.metric or first.rows.shape[0] != second.rows.shape[0]:
    raise ValueError(
      f"{first.metric} of {len(first.rows)} texts and {second.metric} of {len(second.rows)} do not pair"
    )
  found = resampled(first, resampling) - resampled(second, resampling)
  below, above = int((found <= 0).sum()), int((found >= 0).sum())
  return Difference(
    value=first.total() - second.total(),
    interval=_percentiles(found, resampling),
    p=min(1.0, 2 * (min(below, above) + 1) / (len(found) + 1)),
  )


def _percentiles(values: np.ndarray, resampling: Resampling) -> tuple[float, float]:
  rest = 50 * (1 - resampling.confidence)
  low, high = np.percentile(values, [rest, 100 - rest])
  return float(low), float(high)


def _counts(size: int, resampling: Resampling) -> Iterator[np.ndarray]:
  """How often each text is drawn, in blocks float64 [r, N] of the R resamples."""
  block = max(1, min(resampling.resamples, _BLOCK // size))
  for start in range(0, resampling.resamples, block):
    yield _drawn(size, min(block, resampling.resamples - start), resampling.seed, start)


@functools.lru_cache(maxsize=4)
def _drawn(size: int, resamples: int, seed: int, start: int) -> np.ndarray:
  rng = np.random.default_rng((seed, size, start))
  drawn = rng.integers(0, size, (resamples, size)) + size * np.arange(resamples)[:, None]
  counts = np.bincount(drawn.ravel(), minlength=resamples * size)
  return counts.reshape(resamples, size).astype(np.float64)
