"""One self-contained HTML page: style inside, nothing from outside."""

import os
from collections.abc import Sequence
from html import escape

from slm_jax.evaluation.report_style import STYLE
from slm_jax.evaluation.whole_file import write_whole


def write_page(path: str | os.PathLike[str], title: str, parts: Sequence[str]) -> None:
  """Writes a page of ready HTML parts, moved into place when complete; only the title is escaped here."""
  page = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
    f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
  )
  write_whole(path, page.encode("utf-8", errors="replace"))
