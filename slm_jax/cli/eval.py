"""`slm_jax eval`."""

import dataclasses
import sys
from pathlib import Path

from etils import epath

from slm_jax.cli import processes
from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError
from slm_jax.paths import run_folder

EXAMPLE = """slm_jax eval --gin_file=experiments/mini.gin --gin.MODEL_DIR="'runs/mini'" --report=report.html
  slm_jax eval --gin_file=experiments/mini.gin --gin.MODEL_DIR="'runs/mini'" --gin.eval.step="'all'"
  slm_jax eval --gin_file=experiments/mini.gin --gin.MODEL_DIR="'scores'" --bundle=old=bundles/1 --bundle=new=bundles/2
  slm_jax eval --compare runs/mini old=scores/bundles/old --report=comparison.html
  slm_jax eval --rescore runs/mini --normaliser=whisper-english-1"""


def run(argv: list[str]) -> int:
  """Scores trained adapters on tasks and writes predictions, metrics and reports; returns the exit status."""
  parser = parser_for("eval", EXAMPLE)
  parser.add_argument("--report", help="HTML report; default: MODEL_DIR/report.html")
  parser.add_argument("--answers", help="JSON lines of `slm_jax infer` to show in the report")
  parser.add_argument("--dry_run", action="store_true", help="check the config and stop")
  parser.add_argument(
    "--bundle", action="append", default=[], help="[NAME=]FOLDER of an export to score; repeatable"
  )
  parser.add_argument(
    "--model_dir",
    action="append",
    default=[],
    help="[NAME=]FOLDER of a run of this config; repeatable",
  )
  parser.add_argument(
    "--compare", nargs="+", metavar="[NAME=]DIR[@STEP]", help="scored folders, side by side"
  )
  parser.add_argument(
    "--rescore", nargs="+", metavar="DIR", help="scored folders: new scores of the texts kept there"
  )
  parser.add_argument("--normaliser", help="of --compare and --rescore; eval.normaliser elsewhere")
  processes.add_flags(parser)
  flags, bindings = parse(parser, argv)
  if flags.compare or flags.rescore:
    _from_texts(flags)
    return 0
  if flags.normaliser:
    raise UserError("--normaliser goes with --compare and --rescore; bind eval.normaliser instead")
  where = processes.processes_config(flags)
  from slm_jax import config
  from slm_jax.training.processes import joined

  config.load(flags.gin_file, bindings, flags.gin_search_paths.split(","))
  eval_config = config.build("eval")
  if flags.dry_run:
    print(config.operative())
    return 0
  with joined(where) as run_processes:
    _evaluate(eval_config, flags, run_processes)
  return 0


def _from_texts(flags) -> None:
  """Rescores and compares what was evaluated before."""
  from slm_jax.cli.eval_subjects import named
  from slm_jax.evaluation.comparison import Entry
  from slm_jax.evaluation.normalisers import normaliser_of
  from slm_jax.evaluation.rescoring import rescore

  if flags.normaliser:
    try:
      normaliser_of(flags.normaliser)
    except ValueError as error:
      raise UserError(f"--normaliser: {error}") from error
  for folder in flags.rescore or ():
    lines = rescore(folder, normaliser=flags.normaliser)
    print(
      f"[slm_jax] {folder}: {len(lines)} evaluations scored again, see eval.md", file=sys.stderr
    )
  entries = []
  for text in flags.compare or ():
    name, folder = named(text)
    base, sign, step = folder.rpartition("@")
    if sign and step.isdigit() and not Path(folder).exists():
      entries.append(Entry(name=name, folder=base, step=int(step)))
    else:
      entries.append(Entry(name=name, folder=folder))
  if entries:
    _compare(entries, flags.report or "comparison.html", flags.normaliser)


def _compare(entries, path, normaliser: str | None, resampling=None) -> None:
  from slm_jax.evaluation.comparison import compare, write_comparison

  found = compare(entries, normaliser=normaliser, resampling=resampling)
  for written in write_comparison(path, found):
    print(f"[slm_jax] wrote {written}", file=sys.stderr)


def _evaluate(eval_config, flags, run_processes) -> None:
  """All processes read all examples and get all answers, of which the model computes a share; the first writes."""
  from slm_jax.cli.eval_subjects import subjects
  from slm_jax.data import registry
  from slm_jax.evaluation.comparison import Entry
  from slm_jax.evaluation.provenance import code_version
  from slm_jax.training.loop import describe
  from slm_jax.training.processes import code_facts

  named = {name: getattr(flags, name) for name in ("bundle", "model_dir")}
  run_processes.check_agreement(describe(eval_config) | code_facts() | named)
  found = subjects(eval_config, flags.model_dir, flags.bundle)
  if len(found) > 1 and (flags.report or flags.answers):
    raise UserError(f"--report and --answers go with one model; this evaluates {len(found)}")

  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  for task in eval_config.tasks:
    registry.find(task, eval_config.mixture_or_task_module)
  examples, data = _examples(eval_config)
  code = code_version()
  entries, kept = [], []
  for subject in found:
    kept.append(_evaluate_one(subject, eval_config, flags, run_processes, examples, data, code))
    entries.append(Entry(name=subject.name, folder=subject.folder, step=subject.step))
  if len(entries) > 1 and run_processes.index == 0:
    page = run_folder(eval_config.model_dir) / "comparison.html"
    _compare(entries, page, eval_config.normaliser, eval_config.resampling)
  for texts in kept:
    texts.clear()


def _examples(eval_config) -> tuple[list, dict[str, dict]]:
  """The examples of all tasks, and the version of each task's data."""
  from slm_jax.data import registry
  from slm_jax.data.eval_examples import EvalExamples

  max_samples = eval_config.task_feature_lengths["audio"]
  examples, data = [], {}
  for task in registry.subtasks(eval_config.tasks):
    registry.fill_caches(task, num_processes=eval_config.cache_processes)
    found = EvalExamples(
      task, eval_config.split, max_samples=max_samples, max_examples=eval_config.num_examples
    )
    # Scores go by the SeqIO task's name, which tells data sets of one kind of task apart.
    own = [dataclasses.replace(example, task=task) for example in found]
    examples += own
    data[task] = {**found.facts, "scored": len(own), "too long": found.skipped}
    if found.skipped:
      print(
        f"[slm_jax] {task}: {found.skipped} examples longer than {max_samples} samples left out",
        file=sys.stderr,
      )
  if not examples:
    raise UserError(f"{eval_config.tasks} have no example in split {eval_config.split!r} to score")
  return examples, data


def _evaluate_one(subject, eval_config, flags, run_processes, examples, data, code):
  """Scores one model and writes what there is to say; returns the texts kept on the way."""
  from slm_jax.data import registry
  from slm_jax.evaluation.generation import GenerationSettings
  from slm_jax.evaluation.kept_texts import FOLDER as KEPT
  from slm_jax.evaluation.kept_texts import KeptTexts
  from slm_jax.evaluation.provenance import Provenance, model_version
  from slm_jax.evaluation.runner import evaluate
  from slm_jax.evaluation.summary import print_scores, report_run
  from slm_jax.evaluation.writer import FOLDER, write_evaluation
  from slm_jax.training.sharding import mesh_of_several

  model, step = subject.load(mesh_of_several(eval_config.mesh)), subject.step
  version = model_version(model.params, subject.source, step)
  kept = KeptTexts(
    run_folder(subject.folder) / FOLDER / f"{KEPT}-{step}",
    {"model": version, "code": code},
    writes=run_processes.index == 0,
    agree=lambda found: run_processes.gather("texts kept", found)[0],
  )
  result = evaluate(
    model,
    examples,
    GenerationSettings(
      batch_size=eval_config.batch_size,
      num_beams=eval_config.num_beams,
      max_new_tokens=eval_config.task_feature_lengths["targets"],
    ),
    kinds={**registry.task_kinds(eval_config.tasks), **eval_config.task_kinds},
    systems=eval_config.systems,
    normaliser=eval_config.normaliser,
    resampling=eval_config.resampling,
    kept=kept,
  )
  if run_processes.index != 0:
    return kept
  provenance = Provenance(model=version, code=code, data=data, normaliser=eval_config.normaliser)
  folder = epath.Path(subject.folder)
  for path in write_evaluation(result, folder, step, provenance, eval_config.resampling):
    print(f"[slm_jax] wrote {path}", file=sys.stderr)
  print_scores(result, subject.name)
  report = epath.Path(flags.report or run_folder(folder) / subject.report)
  report_run(report, str(folder), step, model, result, examples, flags.answers)
  print(f"[slm_jax] report: {report}", file=sys.stderr)
  return kept
