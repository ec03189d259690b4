"""Texts with their times as SubRip (.srt) and WebVTT (.vtt)."""

from collections.abc import Sequence
from typing import NamedTuple


class Segment(NamedTuple):
  """A piece of a recording, times in seconds."""

  start: float
  end: float
  text: str


def to_srt(segments: Sequence[Segment]) -> str:
  """SubRip: numbered, with commas before milliseconds."""
  blocks = [
    f"{number}\n{_clock(s.start, ',')} --> {_clock(s.end, ',')}\n{s.text}\n"
    for number, s in enumerate(segments, start=1)
  ]
  return "\n".join(blocks)


def to_vtt(segments: Sequence[Segment]) -> str:
  """WebVTT (W3C)."""
  blocks = [f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{s.text}\n" for s in segments]
  return "\n".join(["WEBVTT\n", *blocks])


def _clock(seconds: float, mark: str) -> str:
  milliseconds = round(seconds * 1000)
  minutes, rest = divmod(milliseconds, 60_000)
  hours, minutes = divmod(minutes, 60)
  return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
