"""`slm_jax preflight`."""

import argparse
import json
import os
import sys
from pathlib import Path

from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError
from slm_jax.launch.tpu_slice import LOCAL, parse_slice

EXAMPLE = "slm_jax preflight --gin_file=experiments/slm_2310_00230.gin --topology=v5e:4x4 --topology=v5p:2x2x4"
# Macros of an experiment that say where data and results are: nothing here depends on them.
_OPEN_ENDS = ("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "MIXTURE_OR_TASK_MODULE")
_GIB = 2**30


def run(argv: list[str]) -> int:
  """Compiles a run for TPU slices that are not there; returns 0 if it fits one of them, else 2."""
  parser = parser_for("preflight", EXAMPLE)
  parser.add_argument(
    "--topology",
    action="append",
    default=[],
    help="chip and shape of a slice, v5e:4x4; repeatable; `local` for the devices at hand",
  )
  parser.add_argument("--num_slices", type=int, default=1, help="of the topology, joined by DCN")
  parser.add_argument(
    "--search", help="a chip, v5e: smallest slice that fits, then twice the batch while it fits"
  )
  parser.add_argument("--programs", default="train,encode,decode", help="which to compile")
  parser.add_argument("--num_beams", type=int, default=4, help="of decoding")
  parser.add_argument("--output", help="the reports as JSON")
  parser.add_argument("--model_info", help="every parameter's shape, type and sharding, as text")
  flags, bindings = parse(parser, argv)
  if bool(flags.topology) == bool(flags.search):
    raise UserError("give either --topology=v5e:4x4 (repeatable) or --search=v5e")
  if flags.num_slices < 1 or (flags.num_slices > 1 and (flags.search or LOCAL in flags.topology)):
    raise UserError(
      f"--num_slices={flags.num_slices}: expected 1 or more, of a --topology such as v5e:4x4"
    )
  for topology in set(flags.topology) - {LOCAL}:
    parse_slice(topology)
  if flags.num_beams < 1:
    raise UserError(f"--num_beams={flags.num_beams}: expected at least 1")
  for name in ("output", "model_info"):
    # Said before programs are compiled for minutes.
    if (path := getattr(flags, name)) and (Path(path).is_dir() or not Path(path).parent.is_dir()):
      raise UserError(f"--{name}={path}: expected a file in a folder that is there")
  if LOCAL not in flags.topology:
    # The compiler for TPUs needs none, and an accelerator that is here is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
  reports = _reports(flags, bindings)
  for report in reports:
    print(report.summary())
    _print_details(report)
  if flags.model_info:
    Path(flags.model_info).write_text("\n".join(f"{r.topology}\n{r.info}" for r in reports))
    _note(f"parameters: {flags.model_info}")
  if flags.output:
    text = json.dumps([report.as_dict() for report in reports], indent=1)
    Path(flags.output).write_text(text + "\n")
    _note(f"reports: {flags.output}")
  return 0 if any(report.fits for report in reports) else 2


def load_train_config(flags: argparse.Namespace, bindings: list[str]):
  """The run of the flags; where its data and results are may be left open."""
  from slm_jax import config

  if not flags.gin_file:
    raise UserError("--gin_file is required; see slm_jax preflight --help")
  open_ends = {name: name.lower() for name in _OPEN_ENDS}
  config.load(flags.gin_file, bindings, flags.gin_search_paths.split(","), open_ends)
  return config.build("train")


def _reports(flags: argparse.Namespace, bindings: list[str]) -> list:
  from slm_jax.launch.chips import CHIPS
  from slm_jax.launch.preflight import PROGRAMS, check_divides, preflight, search

  programs = tuple(flags.programs.split(","))
  if unknown := sorted(set(programs) - set(PROGRAMS)):
    raise UserError(f"--programs={flags.programs}: {unknown[0]!r} is none of {', '.join(PROGRAMS)}")
  if flags.search and flags.search not in CHIPS:
    raise UserError(f"--search={flags.search}: expected a chip, one of {', '.join(CHIPS)}")
  config = load_train_config(flags, bindings)
  if flags.search:
    return search(config, CHIPS[flags.search], note=_note)
  for topology in flags.topology:
    # Before the first of them is compiled for minutes.
    check_divides(config, topology, flags.num_slices)
  return [
    preflight(
      config,
      topology,
      num_slices=flags.num_slices,
      programs=programs,
      num_beams=flags.num_beams,
      note=_note,
    )
    for topology in flags.topology
  ]


def _print_details(report) -> None:
  mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
  print(f"  {report.chips} chips, mesh {mesh}; a chip holds")
  for kind, size in report.by_kind.items():
    print(f"    {kind:<12} {size / _GIB:8.3f} GiB")
  if report.on_host:
    print(f"    {'in host memory':<12} {report.on_host / _GIB:8.3f} GiB")
  for program in report.programs:
    if program.error:
      print(f"  {program.name}: {program.error}")
      continue
    sent = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in program.collectives.items())
    print(
      f"  {program.name}: arguments {program.arguments / _GIB:.2f}, results {program.results / _GIB:.2f}, "
      f"temporaries {program.temporaries / _GIB:.2f}, code {program.code / _GIB:.2f} GiB; receives "
      f"{sent or 'nothing'}"
    )
  if (roofline := report.roofline) is not None:
    bounds = ", ".join(f"{name} {1000 * s:.1f} ms" for name, s in roofline.seconds.items())
    print(
      f"  a train step: {roofline.model_flops / 1e12:.1f} TFLOP ({roofline.hardware_flops / 1e12:.1f} with "
      f"what is computed again); at least {bounds}; MFU at most {100 * roofline.best_mfu:.0f} %"
    )
    read = roofline.weight_bytes_read
    print(
      f"  a chip reads {read / 1e9:.1f} GB of weights a step; {report.total_steps} steps: "
      f"{report.chip_hours:.1f} chip-hours at that bound"
    )


def _note(line: str) -> None:
  print(f"[slm_jax] {line}", file=sys.stderr, flush=True)
