"""`slm_jax tasks list | cache NAME`."""

from slm_jax.cli.main import parse, parser_for

EXAMPLE = "slm_jax tasks list --module=tasks.mini"


def run(argv: list[str]) -> int:
  """Lists tasks or fills a task's offline cache; returns the exit status."""
  parser = parser_for("tasks", EXAMPLE)
  parser.add_argument("action", choices=("list", "cache"))
  parser.add_argument("name", nargs="?", help="task or mixture to cache")
  parser.add_argument("--module", required=True, help="module that registers the tasks")
  parser.add_argument("--processes", type=int, default=2, help="processes that fill a cache")
  flags, _ = parse(parser, argv)
  if flags.action == "cache" and not flags.name:
    parser.error("cache needs the NAME of a task or mixture")
  import seqio

  from slm_jax.data import registry

  registry.set_directories(flags.tfds_data_dir, flags.seqio_additional_cache_dirs)
  if flags.action == "cache":
    registry.find(flags.name, flags.module)
    registry.fill_caches(flags.name, num_processes=flags.processes)
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
