"""Whether a run fits a TPU slice, and what it costs there, before anything is paid for.

The run's own programs are compiled with TPU's compiler for a slice that is not there, or for the
devices at hand; memory is the compiler's own account.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from slm_jax.errors import UserError
from slm_jax.launch.absent_slice import slice_devices
from slm_jax.launch.abstract_run import AbstractRun, abstract_run
from slm_jax.launch.chips import GIB, Chip, chip_of
from slm_jax.launch.collectives import collectives
from slm_jax.launch.programs import (
  lower_decode,
  lower_encode,
  lower_train_step,
  share_bytes,
)
from slm_jax.launch.roofline import Roofline, recomputes_layers, train_step_roofline
from slm_jax.launch.tpu_slice import LOCAL
from slm_jax.models.slm import SLM
from slm_jax.training.config import TrainConfig
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.sharding import batch_shards, check_batch_size, make_mesh

PROGRAMS = ("train", "encode", "decode")
_TOO_LARGE = re.compile(r"[Rr]an out of memory|RESOURCE_EXHAUSTED")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One compiled program on one chip, in bytes; the compiler's figures.

  `needed` is what must be free for it: arguments, results that take no argument's place,
  temporaries and code. `error` says why there is no figure.
  """

  name: str
  arguments: int = 0
  results: int = 0
  temporaries: int = 0
  code: int = 0
  error: str | None = None
  collectives: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def needed(self) -> int:
    return self.arguments + self.results + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What preflight found for one slice.

  Attributes:
    topology, chips, mesh: the slice, the number of its chips, sizes of the mesh axes.
    batch_size: rows of a batch, over all chips.
    capacity: bytes of a chip, or of a local device; virtual ones share the machine's memory.
    by_kind: bytes on a chip of what is there all the time, and of a batch.
    on_host: bytes that a chip's host keeps for it.
    info: every parameter's shape, type and sharding: what model-info.txt will say.
    programs: in the order of `PROGRAMS`, those that were compiled.
    roofline: of the train step; None without a table of the chip, or if it does not fit.
  """

  topology: str
  chips: int
  mesh: dict[str, int]
  batch_size: int
  capacity: int
  by_kind: dict[str, int]
  on_host: int
  info: str
  programs: tuple[Program, ...]
  roofline: Roofline | None
  total_steps: int

  @property
  def fits(self) -> bool:
    """Whether every program that was compiled fits a chip."""
    if any(program.error for program in self.programs) or not self.programs:
      return False
    return all(p.needed <= self.capacity for p in self.programs)

  @property
  def largest(self) -> int:
    """Bytes that the largest program needs; those that lie there anyway, if none was compiled."""
    return max([p.needed for p in self.programs] + [sum(self.by_kind.values())])

  @property
  def chip_hours(self) -> float | None:
    """Chip-hours of the run's steps at the bound of the roofline: no run is faster."""
    if self.roofline is None:
      return None
    return self.roofline.step_seconds * self.total_steps * self.chips / 3600

  def summary(self) -> str:
    """One line."""
    shape = f"{self.topology}, batch {self.batch_size}"
    room = (self.capacity - self.largest) / GIB
    verdict = f"fits, {room:.2f} GiB free" if self.fits else f"does not fit, {-room:.2f} GiB short"
    errors = [p.error for p in self.programs if p.error]
    if not self.fits and room > 0:
      verdict = f"does not fit: {errors[0] if errors else 'not compiled'}"
    return f"{shape}: {self.largest / GIB:.2f} of {self.capacity / GIB:.2f} GiB a chip: {verdict}"

  def as_dict(self) -> dict[str, Any]:
    """For JSON."""
    found = dataclasses.asdict(self)
    del found["info"]
    found["programs"] = [{**dataclasses.asdict(p), "needed": p.needed} for p in self.programs]
    found |= {"fits": self.fits, "largest": self.largest, "chip_hours": self.chip_hours}
    if self.roofline is not None:
      found["roofline"]["step_seconds"] = self.roofline.step_seconds
    return found


def preflight(
  config: TrainConfig,
  topology: str,
  *,
  num_slices: int = 1,
  programs: Sequence[str] = PROGRAMS,
  num_beams: int = 4,
  note: Callable[[str], None] = lambda line: None,
) -> Report:
  """Compiles a run's programs for a slice and adds up what they take.

  Args:
    config: the run; nothing is read of its data, and of its bases no more than shapes.
    topology: such as "v5e:4x4", or "local" for the devices at hand.
    num_slices: how many of them, joined by the data centre's network.
    programs: of `PROGRAMS`.
    num_beams: of the decoding.
    note: told what is being done.

  Raises:
    UserError: a batch that does not divide over the slice, a base that cannot be opened, no such
      slice.
  """
  chip = None if topology == LOCAL else chip_of(topology)
  devices = _devices(topology, num_slices)
  run = abstract_run(config, make_mesh(config.mesh, devices))
  by_kind = {
    "frozen": share_bytes(run.frozen),
    "trained": share_bytes(run.state.params),
    "optimizer": share_bytes(run.state.opt_state),
    "batch": share_bytes(run.batch),
  }
  report = Report(
    topology=topology if num_slices == 1 else f"{num_slices} x {topology}",
    chips=len(devices),
    mesh=dict(run.mesh.shape),
    batch_size=config.train_dataset.batch_size,
    capacity=_local_capacity(devices) if chip is None else chip.memory,
    by_kind=by_kind,
    on_host=share_bytes(run.state, on_host=True),
    info=run.info,
    programs=(),
    roofline=None,
    total_steps=config.total_steps,
  )
  if sum(by_kind.values()) > report.capacity:
    # Said in seconds: no compiler is needed to see that what must lie there does not.
    return report
  found, roofline = [], None
  lowered = _lowered(run, config, num_beams)
  for name in programs:
    if name in lowered:
      note(f"{topology}: compiling {name}")
      program, sent = _compile(name, lowered[name]())
      found.append(program)
      if name == "train" and chip is not None and sent is not None:
        model = run.built.objective.model  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(model, SLM):
          roofline = train_step_roofline(run, chip, sent, recomputes_layers(model))
  return dataclasses.replace(report, programs=tuple(found), roofline=roofline)


def check_divides(config: TrainConfig, topology: str, num_slices: int = 1) -> None:
  """Raises UserError unless mesh and batch of a run divide over a slice, of which `preflight` makes a report."""
  mesh = make_mesh(config.mesh, _devices(topology, num_slices))
  together = getattr(config.train_dataset, "examples_per_lm_row", 1)
  check_batch_size(config.train_dataset.batch_size, mesh, config.num_microbatches, together)


def _devices(topology: str, num_slices: int) -> list:
  return jax.devices() if topology == LOCAL else slice_devices(topology, num_slices)


def _local_capacity(devices: list) -> int:
  """Bytes that programs may use of a device at hand: what the device says, or its share of the machine's."""
  stats = devices[0].memory_stats() or {}
  machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return stats.get("bytes_limit") or machine // jax.local_device_count()


def _lowered(run: AbstractRun, config: TrainConfig, num_beams: int) -> dict[str, Callable]:
  found = {"train": lambda: lower_train_step(run, config.num_microbatches)}
  # Evaluation hears audio, and so has no part in a run of cached frames.
  if isinstance(run.built.objective, SLMObjective) and run.batch.audio is not None:
    tokens = config.train_dataset.task_feature_lengths["targets"]
    found["encode"] = lambda: lower_encode(run)
    found["decode"] = lambda: lower_decode(run, num_beams=num_beams, max_new_tokens=tokens)
  return found


def _compile(name: str, lowered) -> tuple[Program, Any]:
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if not _TOO_LARGE.search(text):
      raise
    return Program(name=name, error=text.strip().split("\n")[0][:300]), None
  memory = compiled.memory_analysis()
  sent = collectives(compiled.as_text())
  program = Program(
    name=name,
    arguments=memory.argument_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    collectives=sent.size,
  )
  return program, sent


SLICES = {
  "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
  "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
  "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


def search(
  config: TrainConfig, chip: Chip, *, note: Callable[[str], None] = lambda line: None
) -> list[Report]:
  """Smallest slice of a kind of chip on which the train step fits, then the largest batch that does.

  The batch is tried as it is bound, or the next that divides over the slice, then doubled until it
  does not fit. Slices that the run's mesh does not fit are passed over.

  Returns:
    The reports in the order they were made; the last that fits is the answer, none fitting is too.

  Raises:
    UserError: the mesh fits none of the slices.
  """
  reports: list[Report] = []

  def attempt(shape: str, batch_size: int) -> Report:
    dataset = dataclasses.replace(config.train_dataset, batch_size=batch_size)
    changed = dataclasses.replace(config, train_dataset=dataset)
    reports.append(preflight(changed, f"{chip.name}:{shape}", programs=("train",), note=note))
    note(reports[-1].summary())
    return reports[-1]

  mismatch = None
  for shape in SLICES[chip.name]:
    try:
      multiple = _batch_multiple(config, slice_devices(f"{chip.name}:{shape}"))
    except UserError as error:
      mismatch = error
      note(f"{chip.name}:{shape}: {error}")
      continue
    batch_size = -(-config.train_dataset.batch_size // multiple) * multiple
    if attempt(shape, batch_size).fits:
      while attempt(shape, 2 * batch_size).fits:
        batch_size *= 2
      break
  if mismatch is not None and not reports:
    raise mismatch
  return reports


def _batch_multiple(config: TrainConfig, devices: list) -> int:
  """Rows that a batch is a multiple of on these devices; raises UserError if the mesh does not fit them."""
  dataset = config.train_dataset
  together = getattr(dataset, "examples_per_lm_row", 1)
  shards = batch_shards(make_mesh(config.mesh, devices)) * config.num_microbatches
  return together * math.lcm(shards, getattr(dataset, "num_shards", 1))
