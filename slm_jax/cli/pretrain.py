"""`slm_jax pretrain`."""

from slm_jax.cli.main import parse, parser_for

EXAMPLE = "slm_jax pretrain --gin_file=experiments/mini_language_model.gin"


def run(argv: list[str]) -> int:
  """Trains (or continues) one frozen model and writes its folder; returns the exit status."""
  flags, bindings = parse(parser_for("pretrain", EXAMPLE), argv)
  from slm_jax import config
  from slm_jax.cli.batches import open_batches
  from slm_jax.training.export import write_model
  from slm_jax.training.loop import train

  config.load(flags.gin_file, bindings, flags.gin_search_paths.split(","))
  pretrain = config.build("pretrain")
  result = train(
    pretrain.run, open_batches(pretrain.run, flags), run_text=config.operative()
  )
  if result.finished:
    write_model(pretrain.run.model, result.state.params, pretrain.output_dir)
  return 0
