"""Scores with their intervals as inline SVG: a row for each system or run, a dot and its whiskers."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from slm_jax.evaluation.page_svg import ACCENT, INK, LINE, page_svg
from slm_jax.evaluation.scores import Score


def score_plot_svg(rows: Sequence[tuple[str, Score]], *, label: str) -> str:
  """(name, score) of one metric, from top to bottom → one `<svg>` element, or "" without a row."""
  if not rows:
    return ""

  def draw(axes: Axes) -> None:
    for place, (_, score) in enumerate(rows):
      if score.interval is not None:
        axes.plot(score.interval, [place, place], color=ACCENT, linewidth=2.2, alpha=0.45)
      axes.plot([score.value], [place], "o", color=ACCENT, markersize=6)
      axes.annotate(
        f"{score.value:.1f}",
        (score.value, place),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=INK,
      )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel(f"{label}, percent", color=INK, parse_math=False)
    axes.grid(axis="x", color=LINE, linewidth=1)
    axes.tick_params(which="both", colors=INK, length=0)

  return page_svg(draw, size=(9, 0.9 + 0.36 * len(rows)), label=f"{label} with 95 % intervals")
