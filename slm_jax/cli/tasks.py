"""`slm_jax tasks list | show NAME | check NAME | cache NAME | self_targets NAME`."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.cli import self_targets
from slm_jax.cli.main import parse, parser_for
from slm_jax.cli.output_folder import output_folder
from slm_jax.errors import UserError

EXAMPLE = "slm_jax tasks check mini_asr --module=tasks.mini --num_examples=20"
_PARTS_LISTED = 6
_ACTIONS = {
  "list": "the tasks and mixtures of the module, or of all modules in tasks/",
  "show": "decode examples, print their texts and tokens, write audio and spectrograms",
  "check": "read examples and report what would hurt training; status 2 if something would",
  "cache": "fill the offline cache that training reads",
  self_targets.ACTION: "targets that the frozen LM writes from the transcripts, with flags of its own",
}


def run(argv: list[str]) -> int:
  """Lists, shows, checks or caches tasks; returns the exit status, 2 for data that would hurt."""
  if self_targets.ACTION in argv:
    return self_targets.run(argv)
  parser = parser_for("tasks", EXAMPLE)
  actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
  parser.add_argument("action", choices=tuple(_ACTIONS), help=actions)
  parser.add_argument("name", nargs="?", help="task or mixture")
  parser.add_argument("--module", help="module that registers the tasks")
  parser.add_argument("--processes", type=int, default=2, help="cache: processes that fill it")
  parser.add_argument("--split", help="show: its split, default the last")
  parser.add_argument("--index", type=int, default=0, help="show: first example of the split")
  parser.add_argument(
    "--num_examples", type=int, help="show: examples of each task (3); check: of each split (200)"
  )
  parser.add_argument(
    "--task_feature_lengths",
    action="append",
    type=_lengths,
    default=[],
    help="check: lengths to tell padding for, as JSON; repeat for buckets, the longest last",
  )
  parser.add_argument(
    "--suggest_buckets",
    type=int,
    help="check: find so many shapes that leave least padding; the last is --task_feature_lengths",
  )
  parser.add_argument(
    "--examples_per_lm_row",
    type=int,
    default=1,
    help="check: examples that share a row of the LM in --suggest_buckets",
  )
  parser.add_argument(
    "--lm_positions_per_second",
    type=float,
    help="check: positions of the LM that speech takes (6.25: 25 frames of the encoder, stacked by 4)",
  )
  parser.add_argument("--output", help="folder for what show and check write")
  parser.add_argument("--json", action="store_true", help="show, check: print JSON alone")
  flags, _ = parse(parser, argv)
  if flags.action != "list" and not (flags.name and flags.module):
    parser.error(f"{flags.action} needs the NAME of a task or mixture and its --module")
  if flags.num_examples is not None and flags.num_examples < 1:
    parser.error(f"--num_examples={flags.num_examples} must be at least 1")
  if flags.index < 0:
    parser.error(f"--index={flags.index} must be at least 0")
  if flags.suggest_buckets is not None and flags.suggest_buckets < 1:
    parser.error(f"--suggest_buckets={flags.suggest_buckets} must be at least 1")
  if flags.examples_per_lm_row < 1:
    parser.error(f"--examples_per_lm_row={flags.examples_per_lm_row} must be at least 1")
  if flags.lm_positions_per_second is not None and flags.lm_positions_per_second <= 0:
    parser.error(f"--lm_positions_per_second={flags.lm_positions_per_second} must be above 0")
  if flags.suggest_buckets and not flags.task_feature_lengths:
    parser.error("--suggest_buckets needs --task_feature_lengths")
  from slm_jax.data import registry
  from slm_jax.data.provider import hide_accelerators

  hide_accelerators()
  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  if flags.action == "list":
    return _list(flags.module)
  registry.find(flags.name, flags.module)
  if flags.action == "cache":
    registry.fill_caches(flags.name, num_processes=flags.processes)
    return 0
  return _show(flags) if flags.action == "show" else _check(flags)


def _lengths(text: str) -> dict[str, int]:
  """argparse type: {"audio": 480000, …}."""
  try:
    lengths = json.loads(text)
    if lengths and all(isinstance(value, int) and value > 0 for value in lengths.values()):
      return lengths
  except (AttributeError, ValueError):
    pass
  raise argparse.ArgumentTypeError(f'{text!r} is not {{"audio": 480000, "targets": 64}}')


def _list(module: str | None) -> int:
  import seqio

  from slm_jax.data import registry

  for name in [module] if module else registry.modules_here():
    registry.load_module(name)
  for name in registry.names_registered():
    found = seqio.get_mixture_or_task(name)
    if isinstance(found, seqio.Mixture):
      parts = [task.name for task in seqio.get_subtasks(found)]
      more = f" and {len(parts) - _PARTS_LISTED} more" if len(parts) > _PARTS_LISTED else ""
      print(f"{name:<20} mixture of {', '.join(parts[:_PARTS_LISTED])}{more}")
    else:
      where = (found.cache_dir or "not made yet") if found.supports_caching else "not needed"
      print(f"{name:<20} task, splits {', '.join(found.splits)}; cache: {where}")
  return 0


def _show(flags: argparse.Namespace) -> int:
  import seqio
  import soundfile

  from slm_jax.audio.files import SAMPLE_RATE
  from slm_jax.data.spectrogram_picture import write_spectrogram
  from slm_jax.data.task_examples import SampledSplit

  folder = Path(flags.output or f"{flags.name.replace('/', '_')}-examples")
  for task in seqio.get_subtasks(seqio.get_mixture_or_task(flags.name)):
    split = flags.split or sorted(task.splits)[-1]
    if split not in task.splits:
      raise UserError(f"--split={split}: {task.name} has {', '.join(sorted(task.splits))}")
    sample = SampledSplit(task, split, flags.num_examples or 3, start=flags.index)
    number = None
    for number, example in enumerate(sample, start=flags.index):
      shown = {"task": task.name, "split": split, "index": number, **_plain(example, task)}
      if len(example.audio):
        path = output_folder(folder) / f"{task.name.replace('/', '_')}-{split}-{number}.wav"
        soundfile.write(path, example.audio, SAMPLE_RATE, subtype="PCM_16")
        write_spectrogram(
          example.audio, path.with_suffix(".png"), f"{example.id}  {example.target}"
        )
        shown |= {"audio_file": str(path), "spectrogram": str(path.with_suffix(".png"))}
      print(json.dumps(shown, ensure_ascii=False) if flags.json else _readable(shown))
    if number is None:
      raise UserError(
        f"--index={flags.index}: no example of split {split} of {task.name} from there on; choose "
        "a smaller one, or see what slm_jax tasks check says"
      )
  return 0


def _plain(example, task) -> dict[str, Any]:
  """What there is to say of an example, JSON-ready; `pieces` are its tokens as text."""
  from slm_jax.audio.files import SAMPLE_RATE

  lengths = {n: size for n, size in example.lengths().items() if n in task.output_features}
  texts = ("id", "language", "target_language", "speaker", "transcript", "instruction", "target")
  found: dict[str, Any] = {name: getattr(example, name) for name in texts if getattr(example, name)}
  for name in ("inputs", "targets"):
    if name in lengths:
      ids = getattr(example, name).tolist()
      found[name] = ids
      found[f"{name}_pieces"] = [_piece(task.output_features[name].vocabulary, i) for i in ids]
  if "audio" in lengths:
    found["seconds"] = round(lengths["audio"] / SAMPLE_RATE, 3)
  return {**found, "lengths": lengths}


def _piece(vocabulary, token: int) -> str:
  tokenizer = getattr(vocabulary, "tokenizer", None)
  return tokenizer.id_to_piece(token) if tokenizer else vocabulary.decode([token])


def _readable(shown: Mapping[str, Any]) -> str:
  lines = [f"{shown['task']}, {shown['split']} {shown['index']}"]
  for name, value in shown.items():
    if name not in ("task", "split", "index"):
      text = " ".join(map(str, value)) if isinstance(value, list) else value
      if isinstance(value, dict):
        text = ", ".join(f"{key} {size}" for key, size in value.items())
      lines.append(f"  {name:<16} {text}")
  return "\n".join(lines)


def _suggest(flags: argparse.Namespace, sizes: np.ndarray) -> str:
  from slm_jax.data import bucket_search, packed_bucket_search

  lengths, count = flags.task_feature_lengths[-1], flags.suggest_buckets
  rate = flags.lm_positions_per_second or bucket_search.POSITIONS_PER_SECOND
  if flags.examples_per_lm_row > 1:
    return packed_bucket_search.suggest(sizes, lengths, count, flags.examples_per_lm_row, rate)
  return bucket_search.suggest(sizes, lengths, count, rate)


def _check(flags: argparse.Namespace) -> int:
  import seqio

  from slm_jax.data.example_source import BAD_EXAMPLES
  from slm_jax.data.task_check import check_task

  tasks = seqio.get_subtasks(seqio.get_mixture_or_task(flags.name))
  _check_lengths(flags.task_feature_lengths, tasks)
  sizes: list[np.ndarray] = []
  reports = [
    check_task(task, flags.num_examples or 200, flags.task_feature_lengths, sizes.append)
    for task in tasks
  ]
  suggested = ""
  if flags.suggest_buckets:
    suggested = _suggest(flags, np.concatenate([np.zeros((0, 3), int), *sizes]))
  if flags.output:
    folder = output_folder(flags.output)
    (folder / "report.json").write_text(json.dumps(reports, ensure_ascii=False, indent=2) + "\n")
    bad = [
      {"task": report["task"], "split": split, **problem}
      for report in reports
      for split, found in report["splits"].items()
      for problem in found["bad"]
    ]
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in bad)
    (folder / BAD_EXAMPLES).write_text(lines)
  if flags.json:
    print(json.dumps(reports, ensure_ascii=False, indent=2))
  else:
    for report in reports:
      _print_report(report)
  if suggested:
    print(suggested, file=sys.stderr if flags.json else sys.stdout)
  return 0 if all(report["ok"] for report in reports) else 2


def _check_lengths(lengths: Sequence[Mapping[str, int]], tasks) -> None:
  for task in tasks:
    known = set(task.output_features)
    for bucket in lengths:
      if set(bucket) - known or set(bucket) != set(lengths[0]):
        raise UserError(
          f"--task_feature_lengths={dict(bucket)}: {task.name} has the features {sorted(known)}, "
          "and each must be named every time"
        )
  for bucket in lengths:
    if any(bucket[name] > lengths[-1][name] for name in bucket):
      raise UserError(
        f"--task_feature_lengths: {dict(bucket)} must not be longer than the last, {dict(lengths[-1])}"
      )


def _print_report(report: Mapping[str, Any]) -> None:
  print(report["task"])
  for split, found in report["splits"].items():
    total = "" if found["candidates"] is None else f" of {found['candidates']}"
    print(f"  {split}: {found['examples']} examples, {found['read']}{total} records read")
    if found["seconds"]:
      print(f"    seconds          {_spread(found['seconds'])}")
    hours = ", ".join(f"{name or '?'} {hours:.3f} h" for name, hours in found["hours"].items())
    print(f"    languages        {hours}; {found['speakers']} speakers")
    for name, lengths in found["lengths"].items():
      if lengths and lengths["max"]:
        print(f"    {name:<16} {_spread(lengths)}")
    for name, share in found.get("padding", {}).items():
      print(f"    padding, {name:<7} {'–' if share is None else f'{share:.1%}'}")
    if found["unknown_characters"]:
      print(f"    unknown          {' '.join(found['unknown_characters'])}")
  for finding in report["findings"]:
    count = f": {finding['count']} of {finding['of']}" if finding["of"] else ""
    names = f" ({'; '.join(finding['names'])})" if finding["names"] else ""
    print(f"  {finding['level'].upper()} {finding['split']}: {finding['what']}{count}{names}")
  print("  nothing that would hurt training" if report["ok"] else "  would hurt training")


def _spread(values: Mapping[str, float]) -> str:
  return ", ".join(f"{name} {value:.7g}" for name, value in values.items())
