"""Imports point one way: without TensorFlow the accelerator's side of the package still works."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FREE = ("models", "audio", "training", "interop", "evaluation", "launch")
MODULES = sorted(
  ".".join(path.with_suffix("").parts)
  for package in FREE
  for path in Path("slm_jax", package).rglob("*.py")
  if path.name != "__init__.py"
)


def test_accelerator_side_imports_with_tensorflow_blocked():
  blocked = ("tensorflow", "seqio", "tensorflow_datasets", "clu")
  code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({blocked!r}))
for module in {["slm_jax.batch", "slm_jax.config", "slm_jax.inference", *MODULES]!r}:
  importlib.import_module(module)
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_training_runs_with_tensorflow_blocked(tmp_path, tiny_bases):
  (tmp_path / "fake.gin").write_text(f"""
include "models/mini.gin"
AdapterRecipe.speech_encoder = "{tiny_bases["speech_encoder"]}"
AdapterRecipe.language_model = "{tiny_bases["language_model"]}"
train.model = @AdapterRecipe()
train.model_dir = "{tmp_path / "run"}"
train.optimizer = @OptimizerConfig()
train.total_steps = 2
train.train_dataset = @FakeDatasetConfig()
FakeDatasetConfig.task_feature_lengths = {{"audio": 4000, "inputs": 4, "targets": 4}}
FakeDatasetConfig.batch_size = 8
FakeDatasetConfig.vocab_size = 64
""")
  code = f"""
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "seqio", "tensorflow_datasets"]))
from slm_jax.cli.main import main
sys.exit(main(["train", "--gin_file={tmp_path / "fake.gin"}"]))
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
  assert (tmp_path / "run" / "checkpoint_2").is_dir()


def _imports(path: Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
  return names


@pytest.mark.parametrize(
  ("package", "forbidden"),
  [
    ("models", ("training", "interop", "evaluation", "launch", "cli", "data", "config")),
    ("audio", ("models", "training", "interop", "evaluation", "cli", "data", "config")),
    ("training", ("evaluation", "cli", "data", "config")),
    ("interop", ("training", "evaluation", "cli", "data", "config")),
    ("evaluation", ("cli", "data", "config", "launch")),
    ("launch", ("cli", "data", "config")),
    ("data", ("models", "training", "interop", "evaluation", "cli", "config")),
  ],
)
def test_packages_import_only_what_stands_below_them(package, forbidden):
  bad = {f"slm_jax.{name}" for name in forbidden}
  # Scores are functions of texts alone: SeqIO's metrics of a task are the same.
  text_only = tuple(
    f"slm_jax.evaluation.{name}" for name in ("scores", "statistics", "task_scores")
  )
  for path in Path("slm_jax", package).rglob("*.py"):
    for name in _imports(path):
      top = ".".join(name.split(".")[:2])
      if package == "data" and name.startswith(text_only):
        continue
      assert top not in bad, f"{path} imports {name}"


def test_only_data_and_tasks_know_tensorflow():
  for path in Path("slm_jax").rglob("*.py"):
    if path.parts[1] not in ("data", "cli") and path != Path("slm_jax/bundle/savedmodel.py"):
      tops = {name.split(".")[0] for name in _imports(path)}
      assert not tops & {"tensorflow", "seqio", "tensorflow_datasets"}, path


def test_package_import_imports_nothing_and_gin_is_no_package():
  code = "import sys; import slm_jax; assert 'jax' not in sys.modules and slm_jax.__version__"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
  assert not list(Path("gin").rglob("__init__.py"))
