"""Figures as inline SVG that take their colours from the page."""

import io
import re
from collections.abc import Callable
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn in colours that occur nowhere else and then named, so that one picture suits light and dark.
_PAGE_COLOURS = {"#010203": "var(--ink-2)", "#010204": "var(--line)", "#010205": "var(--accent)"}
INK, LINE, ACCENT = _PAGE_COLOURS


def page_svg(draw: Callable[[Axes], None], *, size: tuple[float, float], label: str) -> str:
  """One `<svg>` element as wide as the page lets it be.

  Args:
    draw: draws on bare axes, in `INK`, `LINE` and `ACCENT`.
    size: in inches.
    label: says to those who do not see it what it shows.
  """
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page", "font.size": 11}):
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.tick_params(which="both", colors=INK, length=0)
    for spine in axes.spines.values():
      spine.set_visible(False)
    draw(axes)
    text = io.StringIO()
    figure.savefig(
      text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
    )
  return _for_page(text.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
  svg = svg[svg.index("<svg") :].strip()
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  # A viewBox without a size lets the page's width decide.
  svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
  svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
  svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
  svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
  for drawn, named in _PAGE_COLOURS.items():
    svg = svg.replace(drawn, named)
  return svg
