"""The loss curve of a run as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from slm_jax.evaluation.page_svg import ACCENT, INK, LINE, page_svg

_MAX_POINTS = 1_500


def loss_curve_svg(train_log: Sequence[Mapping[str, Any]]) -> str:
  """`train.jsonl` lines with "step" and "loss" → one `<svg>` element, or "" with under two points.

  Thin: the reported losses; thick: their exponential average over a fiftieth of the run. The loss
  axis is logarithmic once the values span a factor of ten. Losses that are not finite are left out.
  """
  points = [
    (int(line["step"]), float(line["loss"]))
    for line in train_log
    if math.isfinite(line.get("loss", math.nan))
  ]
  if len(points) < 2:
    return ""
  smooth = _smooth([loss for _, loss in points])
  stride = math.ceil(len(points) / _MAX_POINTS)
  steps = [step for step, _ in points][::stride]
  losses = [loss for _, loss in points][::stride]
  low, high = min(losses), max(losses)

  def draw(axes: Axes) -> None:
    axes.plot(steps, losses, color=ACCENT, linewidth=1, alpha=0.35)
    axes.plot(steps, smooth[::stride], color=ACCENT, linewidth=2.2)
    if low > 0 and high / low > 10:
      axes.set_yscale("log")
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
      axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.set_xlim(steps[0], steps[-1])
    axes.tick_params(which="both", colors=INK, length=0)
    axes.grid(axis="y", which="major", color=LINE, linewidth=1)

  return page_svg(draw, size=(9, 3.2), label="Training loss by step")


def _smooth(values: Sequence[float]) -> list[float]:
  """Exponential average, corrected for its start as Adam's moments are."""
  decay = 1.0 - 1.0 / max(1.0, len(values) / 50)
  total, weight, result = 0.0, 0.0, []
  for value in values:
    total = decay * total + (1 - decay) * value
    weight = decay * weight + (1 - decay)
    result.append(total / weight)
  return result
