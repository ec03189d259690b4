"""`slm_jax tasks list | cache NAME | sample NAME`."""

from slm_jax.cli.main import parse, parser_for
from slm_jax.errors import UserError

EXAMPLE = "slm_jax tasks list --module=tasks.mini"


def run(argv: list[str]) -> int:
  """Lists tasks, fills a cache, or writes one example as audio; returns the exit status."""
  parser = parser_for("tasks", EXAMPLE)
  parser.add_argument("action", choices=("list", "cache", "sample"))
  parser.add_argument("name", nargs="?", help="task or mixture")
  parser.add_argument("--module", required=True, help="module that registers the tasks")
  parser.add_argument("--processes", type=int, default=2, help="processes that fill a cache")
  parser.add_argument("--split", default="validation", help="split to take a sample of")
  parser.add_argument("--index", type=int, default=0, help="number of the sample in its split")
  parser.add_argument("--output", default="sample.wav", help="audio file a sample is written to")
  flags, _ = parse(parser, argv)
  if flags.action != "list" and not flags.name:
    parser.error(f"{flags.action} needs the NAME of a task or mixture")
  import seqio

  from slm_jax.data import registry

  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  if flags.action != "list":
    registry.find(flags.name, flags.module)
    registry.fill_caches(flags.name, num_processes=flags.processes)
    if flags.action == "sample":
      _write_sample(flags.name, flags.split, flags.index, flags.output)
    return 0
  registry.load_module(flags.module)
  for name in registry.names_registered():
    found = seqio.get_mixture_or_task(name)
    if isinstance(found, seqio.Mixture):
      parts = ", ".join(task.name for task in seqio.get_subtasks(found))
      print(f"{name:<20} mixture of {parts}")
    else:
      where = found.cache_dir if found.requires_caching else "not needed"
      print(f"{name:<20} task, splits {', '.join(found.splits)}; cache: {where or 'not made yet'}")
  return 0


def _write_sample(name: str, split: str, index: int, output: str) -> None:
  """Writes the audio of one example and prints what belongs to it."""
  import itertools
  import json

  import soundfile

  from slm_jax.audio.files import SAMPLE_RATE
  from slm_jax.data.batches import EvalExamples

  example = next(itertools.islice(EvalExamples(name, split), index, None), None)
  if example is None:
    raise UserError(
      f"--index={index}: split {split} of {name} has fewer examples; choose a smaller one"
    )
  soundfile.write(output, example.audio, SAMPLE_RATE, subtype="PCM_16")
  texts = {k: v for k, v in vars(example).items() if k != "audio"}
  print(json.dumps(texts, ensure_ascii=False))
