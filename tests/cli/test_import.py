"""`slm_jax import`: the folder it writes, its mistakes, its memory, and a kill in its middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from slm_jax.cli.main import main
from slm_jax.interop import load_language_model, load_speech_encoder
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint
from slm_jax.models.t5_config import T5Config
from tests.t5x_folders import CONFIG, random_params


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
  """mT5 in bfloat16, by transformers."""
  torch.manual_seed(0)
  config = transformers.MT5Config(
    vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4
  )
  folder = tmp_path_factory.mktemp("public")
  model = transformers.MT5ForConditionalGeneration(config)
  model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
  model.to(torch.bfloat16).save_pretrained(folder)
  return folder


def test_a_folder_is_written_that_both_sides_read(source, tmp_path, tiny_tokenizer, capsys):
  output = tmp_path / "new" / "mt5"
  argv = [f"--source={source}", f"--output={output}", "--dtype=float32"]
  argv += [f"--tokenizer={tiny_tokenizer}", "--max_shard_size_gb=1e-5"]
  assert main(["import", *argv]) == 0
  text = capsys.readouterr().err
  count = sum(x.size for x in jax.tree.leaves(load_language_model(source).params))
  assert f"{output}: {count:,} parameters, float32" in text and "emb_dim=16" in text
  assert [path.name for path in output.parent.iterdir()] == ["mt5"]
  names = sorted(path.name for path in output.iterdir())
  assert names[0] == "config.json" and names[-1] == "spiece.model" and len(names) > 5
  lm = load_language_model(output)
  assert lm.tokenizer.vocab_size() == 64
  expected = load_language_model(source, dtype="float32").params
  jax.tree.map(np.testing.assert_array_equal, lm.params, expected)
  theirs = transformers.MT5ForConditionalGeneration.from_pretrained(output)
  assert theirs.dtype == torch.float32
  np.testing.assert_array_equal(
    theirs.lm_head.weight.detach().numpy().T, lm.params["decoder"]["logits_dense"]["kernel"]
  )


def test_types_and_tokenizer_files_are_kept(source, tmp_path, capsys):
  (source / "tokenizer.json").write_text("{}")
  try:
    assert main(["import", f"--source={source}", f"--output={tmp_path / 'lm'}"]) == 0
  finally:
    (source / "tokenizer.json").unlink()
  assert "no spiece.model" in capsys.readouterr().err
  assert (tmp_path / "lm" / "tokenizer.json").read_text() == "{}"
  theirs, ours = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "lm"))
  assert theirs.keys() == ours.keys()
  for name, array in theirs.items():
    assert array.dtype == ours[name].dtype and array.tobytes() == ours[name].tobytes(), name


def test_a_t5x_checkpoint_and_a_speech_encoder_are_sources_too(tmp_path, tiny_bases, capsys):
  folder = save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 3)
  assert main(["import", f"--source={folder}", f"--output={tmp_path / 'lm'}"]) == 0
  lm = load_language_model(tmp_path / "lm")
  assert lm.config == CONFIG
  jax.tree.map(np.testing.assert_array_equal, lm.params, random_params(CONFIG))
  encoder = tiny_bases["speech_encoder"]
  argv = [f"--source={encoder}", f"--output={tmp_path / 'encoder'}", "--dtype=bfloat16"]
  assert main(["import", *argv]) == 0
  expected, ours = load_speech_encoder(encoder, dtype="bfloat16"), tmp_path / "encoder"
  found = load_speech_encoder(ours)
  assert found.config == expected.config
  assert (ours / "spiece.model").read_bytes() == (Path(encoder) / "spiece.model").read_bytes()
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_t5x_checkpoint_is_written_on_request(
  tmp_path, source, tiny_tokenizer, tiny_bases, capsys
):
  out = tmp_path / "t5x"
  argv = [f"--source={source}", f"--output={out}", "--format=t5x", f"--tokenizer={tiny_tokenizer}"]
  assert main(["import", *argv]) == 0
  assert sorted(path.name for path in out.iterdir()) == ["checkpoint_0", "spiece.model"]
  lm, expected = load_language_model(out / "checkpoint_0"), load_language_model(source)
  assert lm.tokenizer.vocab_size() == 64
  jax.tree.map(np.testing.assert_array_equal, lm.params, expected.params)
  # A checkpoint keeps its step.
  folder = save_t5x_checkpoint(tmp_path, CONFIG, random_params(CONFIG), 7)
  assert main(["import", f"--source={folder}/", f"--output={tmp_path / 'b'}", "--format=t5x"]) == 0
  assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoint_7"]
  argv = [f"--source={tiny_bases['speech_encoder']}", f"--output={tmp_path / 'c'}", "--format=t5x"]
  assert main(["import", *argv]) == 2
  assert "T5X has no layout for it" in capsys.readouterr().err


class Malice:
  def __reduce__(self):
    return os.system, ("touch pwned",)


def hostile(folder: Path) -> None:
  (folder / "model.safetensors").unlink()
  torch.save({"shared.weight": Malice()}, folder / "pytorch_model.bin")


def change(folder: Path, edit) -> None:
  tensors = dict(load_file(folder / "model.safetensors"))
  edit(tensors)
  save_file(tensors, folder / "model.safetensors")


def spoil(tensors):
  for name in ("shared.weight", "encoder.final_layer_norm.weight"):
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = np.nan


@pytest.mark.parametrize(
  ("damage", "names"),
  [
    (hostile, ["pytorch_model.bin", "posix.system"]),
    (lambda f: change(f, spoil), ["2 tensors", "shared.weight", "encoder.final_layer_norm.weight"]),
    (lambda f: change(f, lambda t: t.pop("shared.weight")), ["lacks 1", "shared.weight"]),
    (lambda f: change(f, lambda t: t.update(more=np.ones(2))), ["holds 1", "more"]),
    (
      lambda f: change(f, lambda t: t.update({"shared.weight": np.ones((3, 2))})),
      ["do not fit", "shared.weight", "[3, 2]"],
    ),
    (lambda f: (f / "spiece.model").write_bytes(b"x"), ["spiece.model"]),
    (lambda f: (f / "config.json").unlink(), ["config.json", "checkpoint"]),
  ],
  ids=["hostile", "nan", "missing", "surplus", "mis-shaped", "tokenizer", "no-config"],
)
def test_a_bad_source_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, damage, names):
  monkeypatch.chdir(tmp_path)
  save_language_model(tmp_path / "lm", CONFIG, random_params(CONFIG))
  damage(tmp_path / "lm")
  check_refused([f"--source={tmp_path / 'lm'}", f"--output={tmp_path / 'out'}"], names, capsys)
  assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def check_refused(argv: list[str], names: list[str], capsys) -> None:
  assert main(["import", *argv]) == 2
  error = capsys.readouterr().err
  assert error.startswith("slm_jax: error: ") and error.count("\n") == 1
  for name in names:
    assert name in error


@pytest.mark.parametrize(
  ("argv", "names"),
  [
    ([], ["--source", "--help"]),
    (["--source=x"], ["--output"]),
    (["--source=nowhere", "--output=out"], ["nowhere does not exist"]),
    (["--source={source}", "--output={source}"], ["exists", "nothing is overwritten"]),
    (["--source={source}", "--output=out", "--dtype=int8"], ["int8", "bfloat16"]),
    (["--source={source}", "--output=out", "--tokenizer=no.model"], ["no.model does not exist"]),
    (["--source={source}", "--output=out", "--max_shard_size_gb=0"], ["--max_shard_size_gb=0.0"]),
    (["--source={source}", "--output=out", "--max_shard_size_gb=nan"], ["--max_shard_size_gb=nan"]),
    (["--source={source}", "--output={source}/config.json/out"], ["config.json/out", "be written"]),
    (["--source=gs://bucket", "--output=out"], ["gs://bucket/folder"]),
    (["--source={source}", "--output=out", "--gin_file=x"], ["--gin_file"]),
  ],
  ids=lambda value: value[-1] if value and value[0].startswith("--") else None,
)
def test_mistakes_are_one_line_and_status_2(source, tmp_path, monkeypatch, capsys, argv, names):
  monkeypatch.chdir(tmp_path)
  check_refused([one.format(source=source) for one in argv], names, capsys)
  assert not (tmp_path / "out").exists()


# A source of some 400 MB in 37 tensors; the largest has 64 MB.

LARGE = T5Config(
  vocab_size=16384, emb_dim=1024, num_heads=16, head_dim=64, mlp_dim=2816, num_encoder_layers=4,
  num_decoder_layers=2, mlp_activations=("gelu", "linear"), per_layer_relpos=True,
  logits_via_embedding=True,
)  # fmt: skip
LARGEST = LARGE.vocab_size * LARGE.emb_dim * 4


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("large")
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), abstract(LARGE))
  save_language_model(folder, LARGE, params)
  return folder


def abstract(config: T5Config) -> dict:
  from flax import linen as nn

  from slm_jax.models.t5 import T5

  tokens = jax.ShapeDtypeStruct((1, 2), np.int32)
  boxed = jax.eval_shape(
    T5(config).init, jax.random.key(0), tokens, jax.ShapeDtypeStruct((1, 2), bool), tokens
  )
  return nn.unbox(boxed)["params"]


MEASURE = """
import re, sys
import slm_jax.interop.import_folder
import slm_jax.cli.importing
from slm_jax.cli.main import main
if sys.argv[1:]:
  assert main(["import", *sys.argv[1:]]) == 0
# Not getrusage, whose peak begins with that of the parent.
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_bytes(*argv: str) -> int:
  run = subprocess.run(
    [sys.executable, "-c", MEASURE, *argv], capture_output=True, text=True, check=True, timeout=300
  )
  return 1024 * int(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_host_memory_is_that_of_the_largest_tensor_and_a_block(large, tmp_path, dtype):
  total = sum(file.stat().st_size for file in large.glob("*.safetensors"))
  assert total > 350e6 and LARGEST == 2**26
  own = peak_bytes()
  argv = (f"--source={large}", f"--output={tmp_path / 'out'}", f"--dtype={dtype}")
  added = peak_bytes(*argv) - own
  # The tensor in its new type, a block of 64 MiB of it in the old one, and what comes and goes.
  assert added < LARGEST + 2**26 + 2**25, f"{added / 2**20:.0f} MiB"


def test_a_kill_in_the_middle_leaves_no_folder(large, tmp_path):
  output = tmp_path / "out"
  command = [sys.executable, "-m", "slm_jax", "import", f"--source={large}", f"--output={output}"]
  process = subprocess.Popen(command, stderr=subprocess.PIPE)
  deadline = time.monotonic() + 120
  while not any(file.stat().st_size for file in tmp_path.rglob(".model*")):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.001)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL and not output.exists()
  assert [bool(re.match(r"\.out\.importing-", path.name)) for path in tmp_path.iterdir()] == [True]
  # What is left is in nobody's way.
  assert main(["import", f"--source={large}", f"--output={output}", "--dtype=bfloat16"]) == 0
  assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
