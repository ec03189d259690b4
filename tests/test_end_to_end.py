"""The main job in small: SeqIO mixture, train, resume, eval, infer, on the shipped models."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

import slm_jax.bundle
from slm_jax.cli.main import main
from slm_jax.data.eval_examples import EvalExamples
from slm_jax.evaluation.generation import GenerationSettings
from slm_jax.evaluation.runner import evaluate
from slm_jax.evaluation.writer import read_metrics, read_predictions
from slm_jax.interop import load_language_model
from slm_jax.training.recipes import resolve_path
from slm_jax.training.scalars import read_scalars

GIN = ["--gin_file=experiments/mini.gin"] + [
  f"--gin.{binding}"
  for binding in (
    "MIXTURE_OR_TASK_NAME='tiny_slm'",
    "MIXTURE_OR_TASK_MODULE='tests.tiny_tasks'",
    "EVAL_TASKS=('tiny_asr', 'tiny_ast')",
    "EVAL_TASK_KINDS={'tiny_asr': 'transcription', 'tiny_ast': 'translation'}",
    "EVAL_BATCH_SIZE=4",
    "BATCH_SIZE=16",
    # Two examples share a row of the LM.
    "DatasetConfig.length_buckets="
    "({'audio': 64000, 'inputs': 12, 'targets': 28, 'lm_inputs': 100, 'lm_targets': 50},)",
    "DatasetConfig.examples_per_lm_row=2",
    "DatasetConfig.cache_processes=1",
    "train.checkpoint_period=2",
    "train.log_period=1",
    "OptimizerConfig.decay='constant'",
  )
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("end_to_end")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SLM_JAX_CACHE_DIR", str(folder / "cache"))
    here = [f"--gin.MODEL_DIR='{folder / 'run'}'"]
    assert main(["train", *GIN, *here, "--gin.TRAIN_STEPS=2"]) == 0
    assert main(["train", *GIN, *here, "--gin.TRAIN_STEPS=4"]) == 0
    whole = [f"--gin.MODEL_DIR='{folder / 'whole'}'"]
    assert main(["train", *GIN, *whole, "--gin.TRAIN_STEPS=4"]) == 0
    yield folder / "run"


def test_resumed_run_has_the_losses_of_the_uninterrupted_one(run_dir):
  def losses(folder):
    return [line["loss"] for line in read_scalars(folder / "train.jsonl")]

  assert len(losses(run_dir)) == 4
  assert losses(run_dir) == losses(run_dir.parent / "whole")


def test_only_the_adapter_is_in_the_checkpoint(run_dir):
  info = (run_dir / "model-info.txt").read_text()
  assert " frozen " in info
  trained = [line.split()[0] for line in info.split("\n") if " trained " in line]
  assert trained and all(path.startswith("adapter/") for path in trained)
  size = sum(f.stat().st_size for f in (run_dir / "checkpoint_4" / "state").rglob("*"))
  frozen = sum(
    (resolve_path(f"slm_jax:mini/{name}") / "model.safetensors").stat().st_size
    for name in ("speech_encoder", "language_model")
  )
  # Adapter and two moments in fp32 are less than the frozen weights alone are in bf16.
  assert size < frozen


def test_training_from_cached_frames_has_the_same_losses(run_dir, capsys):
  frames = f"--gin.train.frame_cache='{run_dir.parent / 'frames'}'"
  assert main(["cache", *GIN, frames]) == 0
  assert " 0 were there, 0 too long" in capsys.readouterr().err
  assert main(["cache", *GIN, frames]) == 0
  assert "[slm_jax] 0 utterances encoded" in capsys.readouterr().err
  there = [f"--gin.MODEL_DIR='{run_dir.parent / 'cached'}'", "--gin.TRAIN_STEPS=4"]
  assert main(["train", *GIN, *there, frames]) == 0
  heard, cached = (read_scalars(run_dir.parent / n / "train.jsonl") for n in ("whole", "cached"))
  np.testing.assert_allclose(
    [line["loss"] for line in cached], [line["loss"] for line in heard], rtol=1e-4
  )


def test_a_run_is_exported_and_answers_as_a_bundle(run_dir, capsys):
  output = run_dir.parent / "bundle"
  asked = ["--instruction=Repeat the sentence.", f"--output={output}"]
  assert main(["export", f"--checkpoint={run_dir}", *asked]) == 0
  assert "checkpoint_4 as a bundle" in capsys.readouterr().err
  loaded = slm_jax.bundle.load(output)
  assert loaded.manifest is not None and loaded.manifest.step == 4
  text = loaded.transcribe("slm_jax/assets/mini/sample.wav", max_new_tokens=8)
  assert isinstance(text, str) and text
  assert main(["export", f"--checkpoint={run_dir / 'checkpoint_3'}", *asked]) == 2
  assert "no checkpoint_3" in capsys.readouterr().err
  for kind in ("merged", "hf", "t5x"):
    folder = run_dir.parent / kind
    assert (
      main(["export", f"--checkpoint={run_dir}", f"--output={folder}", f"--format={kind}"]) == 0
    )
    said = capsys.readouterr().err
    assert f"checkpoint_4 as {kind} of" in said
    assert ("Transformers has no class for this encoder" in said) == (kind == "hf")
  merged = slm_jax.bundle.load(run_dir.parent / "merged")
  answer = merged.generate(
    "slm_jax/assets/mini/sample.wav", "Repeat the sentence.", max_new_tokens=8
  )
  assert answer == text


def test_audio_that_is_altered_at_random_is_not_cached(run_dir, capsys):
  altered = [
    "--gin.MIXTURE_OR_TASK_NAME='tiny_altered'",
    f"--gin.train.frame_cache='{run_dir.parent / 'altered'}'",
  ]
  assert main(["cache", *GIN, *altered]) == 2
  assert "task tiny_altered alters its audio at random" in capsys.readouterr().err


@pytest.fixture(scope="module")
def evaluated(run_dir):
  assert main(["eval", *GIN, f"--gin.MODEL_DIR='{run_dir}'", "--gin.TRAIN_STEPS=4"]) == 0
  return run_dir


def test_eval_scores_every_system_and_writes_a_report(evaluated):
  run_dir = evaluated
  lines = (run_dir / "inference_eval" / "tiny_asr-metrics.jsonl").read_text().split("\n")
  scores = json.loads(lines[0])["scores"]
  assert set(scores) == {"slm", "ctc", "cascade", "oracle", "shuffled", "silenced"}
  predictions = (run_dir / "inference_eval" / "tiny_ast-4.jsonl").read_text().strip().split("\n")
  assert len(predictions) == 5 and "prediction" in json.loads(predictions[0])
  page = (run_dir / "report.html").read_text()
  assert "<audio" in page and "tiny_ast" in page


def test_bundles_are_scored_side_by_side_with_identical_texts_on_one_device_and_eight(
  evaluated, tmp_path, capsys
):
  run_dir, bundle = evaluated, tmp_path / "bundle"
  assert main(["export", f"--checkpoint={run_dir}", f"--output={bundle}"]) == 0
  scores = tmp_path / "scores"
  chosen = ["--gin.EVAL_TASKS=('tiny_slm',)", "--gin.eval.systems=('slm',)"]
  chosen += [f"--gin.MODEL_DIR='{scores}'", f"--bundle=one={bundle}", f"--bundle=two={bundle}"]
  assert main(["eval", *GIN, *chosen]) == 0

  def texts(folder):
    found = read_predictions(folder, "tiny_asr", 4) + read_predictions(folder, "tiny_ast", 4)
    return [prediction.texts["slm"] for prediction in found]

  one, two = (texts(scores / "bundles" / name) for name in ("one", "two"))
  assert one == two == texts(run_dir) and len(one) == 10
  compared = json.loads((scores / "comparison.json").read_text())["tasks"]
  assert compared["tiny_ast"]["bleu"][1]["difference"]["interval"] == [0.0, 0.0]
  assert not list(scores.rglob(".kept*"))
  line = read_metrics(scores / "bundles" / "one")[0]
  assert line["provenance"]["model"]["adapter (fingerprint)"]
  assert line["provenance"]["data"]["cache"] and line["provenance"]["data"]["scored"] == 5
  # The above had a mesh of eight devices.
  examples = list(EvalExamples("tiny_asr", max_samples=64_000))
  settings = GenerationSettings(batch_size=4, num_beams=4, max_new_tokens=28)
  alone = evaluate(slm_jax.bundle.load(bundle).model, examples, settings, systems=("slm",))
  assert [prediction.texts["slm"] for prediction in alone.tasks[0].predictions] == one[:5]
  # From the texts alone.
  assert main(["eval", "--rescore", str(run_dir), "--normaliser=none"]) == 0
  page = tmp_path / "c.html"
  assert (
    main(
      ["eval", "--compare", f"run={run_dir}@4", str(scores / "bundles" / "one"), f"--report={page}"]
    )
    == 0
  )
  assert "<svg" in page.read_text()
  capsys.readouterr()
  for argv, says in (
    (["--compare", str(run_dir)], "two evaluations"),
    (["--rescore", str(tmp_path)], "holds no evaluation"),
    (["--rescore", str(run_dir), "--normaliser=x"], "unknown normaliser"),
    ([*GIN, *chosen[:-1], f"--bundle=one={bundle}"], "one stands for several"),
    ([*GIN, *chosen, "--report=r.html"], "go with one model"),
  ):
    assert main(["eval", *argv]) == 2
    assert says in capsys.readouterr().err


def test_eval_in_two_processes_gives_the_same_texts(evaluated, tmp_path):
  """Each has one device and answers half of every batch; the second writes nothing."""
  run_dir = evaluated
  shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("inference_eval"))
  with socket.create_server(("", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
  argv = [*GIN, f"--gin.MODEL_DIR='{tmp_path / 'run'}'", "--gin.TRAIN_STEPS=4"]
  argv += [f"--coordinator_address={address}", "--process_count=2"]
  environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", "slm_jax", "eval", *argv, f"--process_index={i}"],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "report:" in outputs[0][1] and "report:" not in outputs[1][1]

  def texts(folder: Path) -> list[str]:
    lines = (folder / "inference_eval" / "tiny_ast-4.jsonl").read_text().strip().split("\n")
    return [json.loads(line)["prediction"] for line in lines]

  assert texts(tmp_path / "run") == texts(run_dir)


def test_infer_answers_about_any_audio(run_dir, tmp_path):
  rng = np.random.default_rng(0)
  for name, rate, channels in (("a.wav", 8_000, 1), ("b.flac", 48_000, 2)):
    noise = 0.1 * rng.standard_normal((rate * 5, channels))  # 5 s: longer than one call takes
    soundfile.write(tmp_path / name, noise, rate)
  requests = tmp_path / "requests.jsonl"
  requests.write_text(
    "".join(
      json.dumps({"audio": name, "instruction": text}) + "\n"
      for name in ("a.wav", "b.flac")
      for text in ("Transcribe this.", "Translate to German.")
    )
  )
  output = tmp_path / "out.jsonl"
  argv = ["infer", f"--model_dir={run_dir}", f"--requests={requests}", f"--output={output}"]
  assert main(argv) == 0
  lines = [json.loads(line) for line in output.read_text().strip().split("\n")]
  assert [Path(line["inputs"]["audio"]).name for line in lines] == ["a.wav"] * 2 + ["b.flac"] * 2
  for line in lines:
    chunks = line["chunks"]
    assert len(chunks) == 2 and chunks[0]["start"] == 0 and chunks[-1]["end"] == 5.0
    assert chunks[0]["end"] == chunks[1]["start"]


def test_the_language_models_text_answers_do_not_change(run_dir):
  lm = load_language_model(resolve_path("slm_jax:mini/language_model"), dtype="float32")
  ids = np.array(
    [[*lm.tokenizer.encode("Lilo buys a red pear."), *lm.tokenizer.encode("Repeat."), 1]]
  )
  before = lm.generate(tokens=ids, mask=ids != 0, max_new_tokens=12)
  from slm_jax.cli.run_folder import load_run
  from slm_jax.training.restore import load_speech_language_model

  class Flags:
    model_dir = str(run_dir)
    gin_file = ()
    gin_search_paths = ""

  _, recipe = load_run(Flags(), [])  # pyright: ignore
  model, _ = load_speech_language_model(recipe, run_dir, step=None, max_samples=64_000)
  after = model.language_model.generate(tokens=ids, mask=ids != 0, max_new_tokens=12)
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_run_of_another_config_is_refused(run_dir, capsys):
  argv = [*GIN, f"--gin.MODEL_DIR='{run_dir}'", "--gin.TRAIN_STEPS=4", "--gin.RANDOM_SEED=3"]
  assert main(["train", *argv]) == 2
  assert "random_seed" in capsys.readouterr().err
