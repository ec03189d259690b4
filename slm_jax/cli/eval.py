"""`slm_jax eval`."""

import dataclasses
import sys

from etils import epath

from slm_jax.cli import processes
from slm_jax.cli.main import parse, parser_for
from slm_jax.paths import run_folder

EXAMPLE = "slm_jax eval --gin_file=experiments/mini.gin --gin.MODEL_DIR=\"'runs/mini'\" --report=report.html"


def run(argv: list[str]) -> int:
  """Scores a trained adapter on tasks and writes predictions, metrics and a report; returns the exit status."""
  parser = parser_for("eval", EXAMPLE)
  parser.add_argument("--report", help="HTML report; default: MODEL_DIR/report.html")
  parser.add_argument("--answers", help="JSON lines of `slm_jax infer` to show in the report")
  parser.add_argument("--dry_run", action="store_true", help="check the config and stop")
  processes.add_flags(parser)
  flags, bindings = parse(parser, argv)
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


def _evaluate(eval_config, flags, run_processes) -> None:
  """All processes read all examples and get all answers, of which the model computes a share; the first writes."""
  from slm_jax.data import registry
  from slm_jax.data.batches import EvalExamples
  from slm_jax.evaluation.generation import GenerationSettings
  from slm_jax.evaluation.runner import evaluate
  from slm_jax.evaluation.summary import print_scores, report_run
  from slm_jax.evaluation.writer import write_evaluation
  from slm_jax.training.loop import describe
  from slm_jax.training.processes import code_facts
  from slm_jax.training.restore import load_speech_language_model
  from slm_jax.training.sharding import mesh_of_several

  run_processes.check_agreement(describe(eval_config) | code_facts())

  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  for task in eval_config.tasks:
    registry.find(task, eval_config.mixture_or_task_module)
  max_samples = eval_config.task_feature_lengths["audio"]
  model, step = load_speech_language_model(
    eval_config.model,
    eval_config.model_dir,
    step=eval_config.step,
    max_samples=max_samples,
    mesh=mesh_of_several(eval_config.mesh),
  )
  examples = []
  for task in eval_config.tasks:
    registry.fill_caches(task, num_processes=eval_config.cache_processes)
    found = EvalExamples(
      task, eval_config.split, max_samples=max_samples, max_examples=eval_config.num_examples
    )
    # Scores go by the SeqIO task's name, which tells data sets of one kind of task apart.
    examples += [dataclasses.replace(example, task=task) for example in found]
    if found.skipped:
      print(
        f"[slm_jax] {task}: {found.skipped} examples longer than {max_samples} samples left out",
        file=sys.stderr,
      )
  settings = GenerationSettings(
    batch_size=eval_config.batch_size,
    num_beams=eval_config.num_beams,
    max_new_tokens=eval_config.task_feature_lengths["targets"],
  )
  kinds = {**registry.task_kinds(eval_config.tasks), **eval_config.task_kinds}
  result = evaluate(
    model,
    examples,
    settings,
    kinds=kinds,
    systems=eval_config.systems,
    normaliser=eval_config.normaliser,
    resampling=eval_config.resampling,
  )
  if run_processes.index != 0:
    return
  for path in write_evaluation(result, eval_config.model_dir, step):
    print(f"[slm_jax] wrote {path}", file=sys.stderr)
  print_scores(result)
  report = epath.Path(flags.report or run_folder(eval_config.model_dir) / "report.html")
  report_run(report, eval_config.model_dir, step, model, result, examples, flags.answers)
  print(f"[slm_jax] report: {report}", file=sys.stderr)
