"""Where a compiled program's time goes on a CPU: a trace of XLA's operations, with what the program says of each.

A trace names operations; the program's text tells which model part an operation came from (the path of
`jax.named_scope` and Flax modules in its metadata), of what kind it is, and how many FLOPs its products take.
"""

import collections
import dataclasses
import glob
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

# Of these the trace shows what they run as well.
CONTAINERS = {"while", "conditional", "call"}
MOVES = set(
  "bitcast broadcast concatenate copy dynamic-slice dynamic-update-slice gather get-tuple-element "
  "iota pad parameter constant reshape reverse slice transpose tuple".split()
)
_OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation of a program.

  Attributes:
    path: names of transformations, modules and scopes that it was made in; of a fusion with products, the first one's.
    kind: "product", "convolution", "reduction", "data movement", "elementwise" or "container".
    flops: of the products in it, once.
  """

  path: str
  kind: str
  flops: int


def _dimensions(shape: str) -> list[int]:
  return [int(size) for size in shape[shape.index("[") + 1 : shape.index("]")].split(",") if size]


def _kind(opcodes: set[str]) -> str:
  named = {"product": {"dot"}, "convolution": {"convolution"}, "reduction": {"reduce"}}
  named["container"] = CONTAINERS
  found = [kind for kind, members in named.items() if opcodes & members]
  return found[0] if found else "data movement" if opcodes <= MOVES else "elementwise"


def operations(hlo: str) -> dict[str, Operation]:
  """Operation name → what the text of an optimised HLO module says of it."""
  bodies: dict[str, list[str]] = {}
  lines: dict[str, tuple[str, str, str]] = {}
  current: list[str] = []
  for line in hlo.splitlines():
    if match := _COMPUTATION.match(line):
      current = bodies.setdefault(match[1], [])
    elif match := _OPERATION.match(line):
      lines[match[1]] = match[2], match[3], match[4]
      current.append(match[1])

  def inside(name: str) -> list[str]:
    """The operation itself, or those that a fusion was made of."""
    _, opcode, rest = lines[name]
    if opcode != "fusion":
      return [name]
    called = re.search(r"calls=%?([\w.\-]+)", rest)
    assert called is not None, rest
    return [one for inner in bodies[called[1]] for one in inside(inner)]

  def flops(name: str) -> int:
    shape, opcode, rest = lines[name]
    if opcode != "dot":
      return 0
    left = _dimensions(lines[re.findall(r"%([\w.\-]+)", rest)[0]][0])
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    assert summed is not None, rest
    terms = math.prod(left[int(axis)] for axis in summed[1].split(",") if axis)
    return 2 * terms * math.prod(_dimensions(shape))

  def path(name: str) -> str:
    found = re.search(r'op_name="([^"]*)"', lines[name][2])
    return found[1] if found else ""

  result = {}
  for name in lines:
    members = inside(name)
    products = [one for one in members if lines[one][1] == "dot"]
    kind = _kind({lines[one][1] for one in members})
    result[name] = Operation(path((products or [name])[0]), kind, sum(map(flops, products)))
  return result


Event = tuple[str, float, float]  # operation, start, end


def shares(events: Iterable[Event]) -> dict[str, float]:
  """Operation → time; an instant in which several threads run operations is divided among them.

  The sum is the time in which any operation ran.
  """
  edges = sorted(
    edge for name, start, end in events for edge in ((start, 1, name), (end, -1, name))
  )
  found: dict[str, float] = collections.defaultdict(float)
  running: collections.Counter[str] = collections.Counter()
  before = 0.0
  for time, sign, name in edges:
    for one, count in running.items():
      found[one] += (time - before) * count / running.total()
    before = time
    running[name] += sign
    if not running[name]:
      del running[name]
  return dict(found)


def trace(run: Callable[[], Any], module: str) -> list[Event]:
  """Runs it and returns the operations of the program `module` in seconds, those that only run others included."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(run())
    (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    data = jax.profiler.ProfileData.from_file(path)
  found = []
  for plane in data.planes:
    for event in (event for line in plane.lines for event in line.events):
      stats = dict(event.stats)
      if stats.get("hlo_module") == module and stats.get("hlo_op") == event.name:
        start = event.start_ns * 1e-9
        found.append((event.name, start, start + event.duration_ns * 1e-9))
  return found


def part_of(path: str, parts: Mapping[str, str]) -> str:
  """The first part whose pattern is found in the path; "other" without one."""
  return next((name for name, pattern in parts.items() if re.search(pattern, path)), "other")


def profile(
  events: list[Event], program: Mapping[str, Operation], parts: Mapping[str, str]
) -> list[dict[str, Any]]:
  """A row for each part and kind, longest first: seconds, share of the whole, GFLOP/s of products, runs of operations.

  Args:
    parts: name → pattern of paths, the first that fits counts.
  """
  leaves = [event for event in events if program[event[0]].kind != "container"]
  counts = collections.Counter(name for name, *_ in leaves)
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  for name, seconds in shares(leaves).items():
    operation = program[name]
    key = part_of(operation.path, parts), operation.kind
    row = rows.setdefault(key, {"seconds": 0.0, "flops": 0, "runs": 0})
    row["seconds"] += seconds
    row["flops"] += operation.flops * counts[name]
    row["runs"] += counts[name]
  total = sum(row["seconds"] for row in rows.values())
  found = [
    {"part": part, "kind": kind, **row, "share": row["seconds"] / total}
    for (part, kind), row in rows.items()
  ]
  for row in found:
    flops, seconds = row.pop("flops"), row["seconds"]
    row["gigaflop_per_second"] = 1e-9 * flops / seconds if flops and seconds else None
  return sorted(found, key=lambda row: -row["seconds"])


def table(rows: list[dict[str, Any]], ceiling: float) -> str:
  """Rows of `profile` as text, products beside the ceiling in GFLOP/s."""
  head = f"{'part':<32} {'kind':<14} {'seconds':>8} {'share':>6} {'GFLOP/s':>8} {'of ceiling':>10} {'runs':>6}"
  lines = [head]
  for row in rows:
    rate = row["gigaflop_per_second"]
    speed = f"{rate:8.1f} {rate / ceiling:10.0%}" if rate else " " * 19
    name = f"{row['part']:<32} {row['kind']:<14}"
    lines.append(f"{name} {row['seconds']:8.3f} {row['share']:6.1%} {speed} {row['runs']:6}")
  return "\n".join(lines)
