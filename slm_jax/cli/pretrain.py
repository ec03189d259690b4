"""`slm_jax pretrain`."""

import sys

from slm_jax.cli.main import parse, parser_for

EXAMPLE = "slm_jax pretrain --gin_file=experiments/mini_language_model.gin"


def run(argv: list[str]) -> int:
  """Trains (or continues) one frozen model, writes its folder, scores it, writes its card; returns the exit status."""
  parser = parser_for("pretrain", EXAMPLE)
  parser.add_argument("--dry_run", action="store_true", help="check the config and stop")
  flags, bindings = parse(parser, argv)
  from slm_jax import config
  from slm_jax.cli.batches import open_batches, open_held_out
  from slm_jax.training.export import write_model
  from slm_jax.training.loop import train

  config.load(flags.gin_file, bindings, flags.gin_search_paths.split(","))
  pretrain = config.build("pretrain")
  if flags.dry_run:
    print(config.operative())
    return 0
  result = train(
    pretrain.run,
    open_batches(pretrain.run, flags),
    held_out=open_held_out(pretrain.run, flags),
    run_text=config.operative(),
  )
  if result.finished:
    digest = write_model(pretrain.run.model, result.state.params, pretrain.output_dir)
    command = f"slm_jax pretrain --gin_file={' --gin_file='.join(flags.gin_file)}"
    _score(pretrain, digest, command)
  return 0


def _score(pretrain, digest: str, command: str) -> None:
  from pathlib import Path

  from slm_jax import interop
  from slm_jax.data.eval_examples import EvalExamples
  from slm_jax.data.text_examples import text_examples
  from slm_jax.evaluation import pretraining
  from slm_jax.training.recipes import BestRQRecipe, LanguageModelRecipe

  folder, dataset = Path(pretrain.output_dir), pretrain.run.train_dataset
  name, lengths = dataset.mixture_or_task_name, dataset.task_feature_lengths
  if isinstance(pretrain.run.model, LanguageModelRecipe):
    title = "Mini language model: mT5-style, English, German, Spanish, French"
    examples = list(text_examples(name, pretrain.score_split, pretrain.score_examples))
    model = interop.load_language_model(folder, dtype="float32")
    table = pretraining.score_language_model(model, examples, lengths["targets"])
  elif isinstance(pretrain.run.model, BestRQRecipe):
    title, table = "Speech encoder pre-trained by BEST-RQ, without a CTC head", {}
  else:
    title = "Mini speech encoder: USM-shaped Conformer-CTC, English, German, Spanish, French"
    examples = EvalExamples(
      name,
      pretrain.score_split,
      max_samples=lengths["audio"],
      max_examples=pretrain.score_examples,
    )
    encoder = interop.load_speech_encoder(folder, dtype="float32")
    table = pretraining.score_speech_encoder(encoder, examples, lengths["audio"])
  started = pretrain.run.initial_checkpoint_path
  facts = {
    "made by": f"`{command}`",
    "data": f"`{name}` of the mini world, split `{dataset.split}`: no held-out pattern, name or voice",
    "training": f"{pretrain.run.total_steps} steps of {dataset.batch_size}, seed {pretrain.run.random_seed}"
    + (f", from `{started}`" if started else ""),
    "scored on": f"`{name}`, split `{pretrain.score_split}`, greedy, the bf16 weights that are shipped"
    if table
    else "nothing: it gives frames and no text",
    "model.safetensors SHA-256": f"`{digest}`",
    "licence": "Apache-2.0",
  }
  pretraining.write_card(folder / "README.md", title=title, facts=facts, table=table)
  for score, value in table.items():
    print(f"{score}: {value:.1f} %")
  print(f"[slm_jax] model card: {folder / 'README.md'}", file=sys.stderr)
