"""The command line: modes, help, and mistakes as one line with status 2."""

import os
import subprocess
import sys

import pytest

from slm_jax.cli import main as cli
from slm_jax.cli.main import MODES, _keep_virtual_devices_in_step, main


@pytest.mark.parametrize("mode", sorted(MODES))
def test_help_shows_a_working_example(mode, capsys):
  with pytest.raises(SystemExit) as stopped:
    main([mode, "--help"])
  assert stopped.value.code == 0
  text = capsys.readouterr().out
  assert "example:" in text and f"slm_jax {mode}" in text


MINI = "--gin_file=experiments/mini.gin"


@pytest.mark.parametrize(
  ("argv", "names"),
  [
    (["trian"], ["trian", "train"]),
    (["train", "--gin_fiel=x"], ["--gin_fiel", "--help"]),
    (["train", MINI], ["MODEL_DIR"]),
    (["train", MINI, "--gin.MODEL_DIR"], ["--gin.MODEL_DIR", "NAME=VALUE"]),
    (["train", MINI, "--gin.MODEL_DIR='x'", "--gin.BATCH_SZE=3"], ["BATCH_SZE", "BATCH_SIZE"]),
    (["train", MINI, "--gin.MODEL_DIR='x'", "--gin.BATCH_SIZE='3'"], ["batch_size", "int"]),
    (
      ["train", MINI, "--gin.MODEL_DIR='x'", "--gin.MIXTURE_OR_TASK_MODULE='tasks.nothing'"],
      ["tasks.nothing", "MIXTURE_OR_TASK_MODULE"],
    ),
    (
      ["train", MINI, "--gin.MODEL_DIR='x'", "--gin.MIXTURE_OR_TASK_NAME='mini_slim'"],
      ["mini_slim", "mini_slm"],
    ),
    (
      ["infer", "--model_dir=nowhere", "--audio=a.wav", "--instruction=x", "--output=o"],
      ["nowhere"],
    ),
    (["infer", "--model_dir=x", "--output=o"], ["--requests", "--audio"]),
    (["infer", "--model_dir=x", "--requests=missing.jsonl", "--output=o"], ["missing.jsonl"]),
    (["tasks", "cache", "--module=tasks.mini"], ["NAME"]),
    (["eval", MINI, "--gin.MODEL_DIR='nowhere'"], ["nowhere", "checkpoint"]),
  ],
  ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_status_2(argv, names, capsys):
  assert main(argv) == 2
  error = capsys.readouterr().err.strip().split("\n")[-1]
  assert error.startswith("slm_jax: error: ")
  for name in names:
    assert name in error


def test_what_a_t5x_user_types_works(capsys, tmp_path):
  """Mode by flag, bindings by either flag, later files over earlier ones, a dry run that writes nothing."""
  (tmp_path / "mine.gin").write_text("TRAIN_STEPS = 7\nBATCH_SIZE = 24\n")
  argv = [MINI, f"--gin_file={tmp_path / 'mine.gin'}", "--gin_bindings=BATCH_SIZE=48"]
  argv += [f"--gin.MODEL_DIR='{tmp_path / 'run'}'", "--run_mode=train", "--dry_run"]
  assert main(argv) == 0
  printed = capsys.readouterr().out
  assert "TRAIN_STEPS = 7" in printed and "BATCH_SIZE = 48" in printed
  assert not (tmp_path / "run").exists()
  assert main([*argv[:-2], "--run_mode=eval", "--dry_run"]) == 0
  assert "eval.batch_size" in capsys.readouterr().out
  start = ["--gin.INITIAL_CHECKPOINT_PATH='runs/other/checkpoint_3'"]
  language_model = ["pretrain", "--gin_file=experiments/mini_language_model.gin", *start]
  assert main([*language_model, "--dry_run"]) == 0
  assert "INITIAL_CHECKPOINT_PATH = 'runs/other/checkpoint_3'" in capsys.readouterr().out


def test_the_console_script_starts_again_on_huge_pages_once_and_keeps_a_setting_of_the_user_s():
  report = (
    "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])\n"
    "from slm_jax.cli import main\n"
    "main._use_huge_pages(); print('after')"
  )

  def lines(**extra) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | extra
    command = [sys.executable, "-c", report, "train", "--gin.NAME='a b'"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()

  arguments = """['train', "--gin.NAME='a b'"]"""
  again = f"glibc.malloc.hugetlb=1 {arguments}"
  assert lines()[-2:] == [again, "after"]
  own = "glibc.malloc.arena_max=2"
  assert lines(GLIBC_TUNABLES=own) == [f"{own} {arguments}", "after"]


ORDERED = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
EIGHT = "--xla_force_host_platform_device_count=8"
CONCURRENT = f"{EIGHT} --xla_cpu_enable_concurrency_optimized_scheduler=true"


@pytest.mark.parametrize(
  ("given", "expected"),
  [("", ""), (EIGHT, f"{EIGHT} {ORDERED}"), (CONCURRENT, CONCURRENT)],
  ids=["one device", "eight", "the user's word"],
)
def test_virtual_devices_run_collectives_in_order(given, expected, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", given)
  _keep_virtual_devices_in_step()
  assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
  ("there", "before", "after"),
  [
    ([], None, "cpu"),
    (["/dev/nvidia0"], None, None),
    (["/dev/accel0"], None, None),
    ([], "tpu", "tpu"),
  ],
  ids=["nothing", "a GPU", "a TPU", "the user's word"],
)
def test_libtpu_is_not_loaded_where_no_accelerator_is(there, before, after, monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_PLATFORMS")
  if before:
    monkeypatch.setenv("JAX_PLATFORMS", before)
  for path in there:
    (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path[1:]).touch()
  monkeypatch.setattr(cli, "_ACCELERATORS", [f"{tmp_path}{p}" for p in cli._ACCELERATORS])
  monkeypatch.setattr(cli, "_PCI_VENDORS", str(tmp_path / "none"))
  cli._pass_over_absent_accelerators()
  assert os.environ.get("JAX_PLATFORMS") == after


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
  def interrupted():
    raise KeyboardInterrupt

  monkeypatch.setattr(cli, "_quiet_environment", interrupted)
  assert main(["train", MINI]) == 130
  assert capsys.readouterr().err == "slm_jax: interrupted\n"
