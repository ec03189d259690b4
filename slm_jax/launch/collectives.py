"""What a compiled program sends between devices, read from its text.

The compiler prints a loop's body once; a collective inside counts as often as the loop runs.
"""

import collections
import dataclasses
import math
import re

# What crosses the network that joins slices, sent through the hosts.
BETWEEN_SLICES = "between-slices"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_FROM_SLICE = re.compile(r"= (.+?) recv\(.*xla_megascale_runtime")
_ARRAY = re.compile(r"(\w+?)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=(?:%?([\w.\-]+)|\{(.+?)\})")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Collectives:
  """Of one run of a program, on one device: how many of each kind, and the bytes of their results."""

  count: dict[str, int]
  size: dict[str, int]

  @property
  def total_bytes(self) -> int:
    return sum(self.size.values())


def _array_bytes(text: str) -> int:
  """Bytes of the largest array that a shape names; an asynchronous start names its operand too."""
  sizes = []
  for kind, dims in _ARRAY.findall(text):
    bits = 8 if kind == "pred" else int((_BITS.search(kind) or ["0"])[0])
    sizes.append(math.prod(int(n) for n in dims.split(",") if n) * bits // 8)
  return max(sizes, default=0)


def _parse(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of every computation by name, and the name of the entry."""
  computations, name, entry = {}, "", ""
  for line in text.splitlines():
    if found := _COMPUTATION.match(line.strip()):
      name = found[1]
      computations[name] = []
      if line.startswith("ENTRY"):
        entry = name
    elif name:
      computations[name].append(line)
  return computations, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
  """How often a loop runs: the compiler's own word, or the bound that its condition compares with."""
  if found := _TRIPS.search(line):
    return int(found[1])
  if not (found := _CONDITION.search(line)):
    return 1
  bounds = [int(n) for one in computations.get(found[1], ()) for n in _CONSTANT.findall(one)]
  return max(bounds, default=1)


def collectives(text: str) -> Collectives:
  """Counts them in the text of a compiled program.

  A collective that the compiler spreads over several fusions, so that products hide it, stands in the
  text of each of them; its channel tells that they are one.
  """
  computations, entry = _parse(text)
  found: dict[str, tuple[str, int, int]] = {}  # channel -> (kind, bytes, times)

  def walk(name: str, times: int) -> None:
    for number, line in enumerate(computations.get(name, ())):
      if match := _COLLECTIVE.search(line):
        channel = _CHANNEL.search(line)
        key = f"channel {channel[1]}" if channel else f"{name} {number}"
        before = found.get(key, ("", 0, 0))
        found[key] = match[2], max(_array_bytes(match[1]), before[1]), max(times, before[2])
        continue
      if match := _FROM_SLICE.search(line):
        found[f"{name} {number}"] = BETWEEN_SLICES, _array_bytes(match[1]), times
        continue
      trips = _trips(line, computations)
      for one, several in _CALLED.findall(line):
        for inner in (one or several).replace("%", "").split(","):
          walk(inner.strip(), times * trips)

  walk(entry, 1)
  count, size = collections.Counter(), collections.Counter()
  for kind, one, times in found.values():
    count[kind] += times
    size[kind] += times * one
  return Collectives(dict(count), dict(size))
