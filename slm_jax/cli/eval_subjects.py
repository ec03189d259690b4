"""What `slm_jax eval` scores: checkpoints of runs, and exported bundles."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from slm_jax.bundle.loading import load
from slm_jax.errors import UserError
from slm_jax.evaluation.config import EvalConfig
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.paths import run_folder
from slm_jax.training.restore import checkpoint_folders, load_speech_language_model

# Of MODEL_DIR, for results of bundles.
BUNDLES = "bundles"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
  """One model to score.

  Attributes:
    name: in comparisons.
    folder: for results.
    source: where it is.
    load: mesh → the model and its step.
  """

  name: str
  folder: str
  source: str
  load: Callable[[Mesh | None], tuple[SpeechLanguageModel, int]]


def named(text: str) -> tuple[str, str]:
  """NAME=FOLDER, or a folder, which is named by its last part."""
  name, sign, folder = text.partition("=")
  if not sign or "/" in name:
    name, folder = Path(text).absolute().name, text
  if not folder or not re.fullmatch(r"[\w.:+@-]+", name):
    raise UserError(f"{text!r}: expected NAME=FOLDER, the name of letters, digits and . : + @ - _")
  return name, folder


def subjects(
  config: EvalConfig, model_dirs: Sequence[str], bundles: Sequence[str]
) -> list[Subject]:
  """The bundles, and the checkpoints `config.step` of the runs; of MODEL_DIR's run if nothing is named.

  Results of a run's checkpoints go into its folder, those of a bundle into MODEL_DIR/bundles/NAME.

  Raises:
    UserError: no checkpoint in a run, or two subjects of one name.
  """
  found = [_bundle(config, *named(text)) for text in bundles]
  runs = [named(text) for text in model_dirs]
  if not bundles and not runs:
    runs = [(run_folder(config.model_dir).name, config.model_dir)]
  for name, folder in runs:
    found += _checkpoints(config, name, folder)
  names = [subject.name for subject in found]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise UserError(f"{', '.join(twice)} stands for several models; name them NAME=FOLDER")
  return found


def _bundle(config: EvalConfig, name: str, folder: str) -> Subject:
  def read(mesh: Mesh | None) -> tuple[SpeechLanguageModel, int]:
    bundle = load(folder, mesh=mesh)
    return bundle.model, 0 if bundle.manifest is None else bundle.manifest.step

  results = str(run_folder(config.model_dir) / BUNDLES / name)
  return Subject(name=name, folder=results, source=folder, load=read)


def _checkpoints(config: EvalConfig, name: str, folder: str) -> list[Subject]:
  if config.step == "all":
    steps = list(checkpoint_folders(folder))
  else:
    steps = list(config.step) if isinstance(config.step, tuple) else [config.step]

  def reader(step: int | str | None):
    def read(mesh: Mesh | None) -> tuple[SpeechLanguageModel, int]:
      return load_speech_language_model(
        config.model,
        folder,
        step=step,
        max_samples=config.task_feature_lengths["audio"],
        mesh=mesh,
      )

    return read

  return [
    Subject(
      name=name if len(steps) == 1 else f"{name}@{step}",
      folder=folder,
      source=folder,
      load=reader(step),
    )
    for step in steps
  ]
