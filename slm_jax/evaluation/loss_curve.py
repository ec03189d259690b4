"""The loss curve of a run as inline SVG that takes its colours from the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

# Drawn in colours that occur nowhere else and then named, so that one picture suits light and dark.
_PAGE_COLOURS = {"#010203": "var(--ink-2)", "#010204": "var(--line)", "#010205": "var(--accent)"}
_INK, _LINE, _ACCENT = _PAGE_COLOURS
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
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loss", "font.size": 11}):
    figure = Figure(figsize=(9, 3.2))
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=_ACCENT, linewidth=1, alpha=0.35)
    axes.plot(steps, smooth[::stride], color=_ACCENT, linewidth=2.2)
    if low > 0 and high / low > 10:
      axes.set_yscale("log")
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
      axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss", color=_INK)
    axes.set_xlim(steps[0], steps[-1])
    axes.tick_params(which="both", colors=_INK, length=0)
    axes.grid(axis="y", which="major", color=_LINE, linewidth=1)
    for spine in axes.spines.values():
      spine.set_visible(False)
    text = io.StringIO()
    figure.savefig(
      text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
    )
  return _for_page(text.getvalue())


def _smooth(values: Sequence[float]) -> list[float]:
  """Exponential average, corrected for its start as Adam's moments are."""
  decay = 1.0 - 1.0 / max(1.0, len(values) / 50)
  total, weight, result = 0.0, 0.0, []
  for value in values:
    total = decay * total + (1 - decay) * value
    weight = decay * weight + (1 - decay)
    result.append(total / weight)
  return result


def _for_page(svg: str) -> str:
  svg = svg[svg.index("<svg") :].strip()
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  # A viewBox without a size lets the page's width decide.
  svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
  svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
  svg = svg.replace("<svg", '<svg role="img" aria-label="Training loss by step"', 1)
  svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
  for drawn, named in _PAGE_COLOURS.items():
    svg = svg.replace(drawn, named)
  return svg
