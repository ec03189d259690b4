"""What `slm_jax eval` scores: checkpoints of runs, and exported bundles."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from slm_jax.bundle.loading import load
from slm_jax.bundle.manifest import read_manifest
from slm_jax.bundle.merged import is_merged
from slm_jax.errors import UserError
from slm_jax.evaluation.config import EvalConfig
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.paths import run_folder
from slm_jax.training.restore import (
  PREFIX,
  checkpoint_folder,
  checkpoint_folders,
  load_speech_language_model,
)

# Of MODEL_DIR, for results of bundles.
BUNDLES = "bundles"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
  """One model to score.

  Attributes:
    name: in comparisons.
    folder: for results.
    source: where it is.
    step: of its checkpoint, 0 if that is not known.
    report: name of the HTML page.
    load: mesh → the model.
  """

  name: str
  folder: str
  source: str
  step: int
  report: str
  load: Callable[[Mesh | None], SpeechLanguageModel]


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
    UserError: no checkpoint in a run, a folder that is no bundle, or two subjects of one name.
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
  path = Path(folder)
  return Subject(
    name=name,
    folder=str(run_folder(config.model_dir) / BUNDLES / name),
    source=folder,
    # Read before anything else, so that a folder that is none is told at once.
    step=0 if is_merged(path) else read_manifest(path).step,
    report="report.html",
    load=lambda mesh: load(folder, mesh=mesh).model,
  )


def _checkpoints(config: EvalConfig, name: str, folder: str) -> list[Subject]:
  if config.step == "all":
    steps = list(checkpoint_folders(folder))
  else:
    asked = config.step if isinstance(config.step, tuple) else (config.step,)
    found = [checkpoint_folder(folder, step) for step in asked]
    steps = [int(path.name.removeprefix(PREFIX)) for path in found]

  def read(mesh: Mesh | None, step: int) -> SpeechLanguageModel:
    max_samples = config.task_feature_lengths["audio"]
    return load_speech_language_model(
      config.model, folder, step=step, max_samples=max_samples, mesh=mesh
    )[0]

  alone = len(steps) == 1
  return [
    Subject(
      name=name if alone else f"{name}@{step}",
      folder=folder,
      source=folder,
      step=step,
      report="report.html" if alone else f"report-{step}.html",
      load=functools.partial(read, step=step),
    )
    for step in steps
  ]
