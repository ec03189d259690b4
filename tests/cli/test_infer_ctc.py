"""`slm_jax infer --ctc`: the shipped encoder's transcript, and mistakes in one line."""

import json
import shutil

import jax
import numpy as np
import pytest
import soundfile

from slm_jax.audio.whisper_log_mel import WhisperLogMelConfig
from slm_jax.cli.main import main
from slm_jax.interop.speech_encoder_folder import abstract_params, save_speech_encoder
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.speech_encoders.whisper import WhisperConfig

ENCODER = "slm_jax/assets/mini/speech_encoder"
SAMPLE = "slm_jax/assets/mini/sample.wav"


@pytest.mark.parametrize("beams", [1, 4])
def test_the_shipped_encoder_hears_the_sample(tmp_path, capsys, beams):
  output = tmp_path / "a" / "out.jsonl"
  shipped = "slm_jax:mini/speech_encoder"
  argv = [f"--speech_encoder={shipped}", f"--audio={SAMPLE}", f"--ctc_beams={beams}"]
  argv += ["--batch_size=1", f"--output={output}"]
  assert main(["infer", "--ctc", *argv]) == 0
  captured = capsys.readouterr()
  line = json.loads(captured.out)
  assert captured.out == output.read_text()
  assert line["prediction"] == "In March Sunolo forgets Silo."
  assert line["inputs"]["audio"] == SAMPLE and set(line["inputs"]) == {"audio", "duration"}
  assert (line["score"] is None) == (beams == 1)
  assert "1 requests, 0 skipped" in captured.err


def test_without_an_output_lines_are_shown_and_long_audio_is_cut(tmp_path, capsys):
  sample, rate = soundfile.read(SAMPLE, dtype="int16")
  pause = np.zeros(rate // 2, np.int16)
  file = tmp_path / "three.wav"
  soundfile.write(file, np.concatenate([sample, pause] * 3), rate)
  argv = [f"--speech_encoder={ENCODER}", f"--audio={file}", "--chunk_seconds=3", "--batch_size=1"]
  assert main(["infer", *argv, "--ctc"]) == 0
  line = json.loads(capsys.readouterr().out)
  texts = [chunk["text"] for chunk in line["chunks"]]
  assert len(texts) == 3 and all(text.startswith("In March Sunolo forgets ") for text in texts)
  assert line["prediction"] == " ".join(texts)
  assert line["chunks"][-1]["end"] == line["inputs"]["duration"]
  assert [path.name for path in tmp_path.iterdir()] == ["three.wav"]


def toothless(folder):
  shutil.copytree(ENCODER, folder)
  (folder / "spiece.model").unlink()


@pytest.mark.parametrize(
  ("argv", "names"),
  [
    (["--audio=a.wav"], ["--speech_encoder"]),
    (["--speech_encoder=x"], ["--requests", "--audio"]),
    (["--speech_encoder=x", "--audio=a", "--requests=b"], ["either --requests"]),
    (["--speech_encoder=x", "--requests=b"], ["--output"]),
    (["--speech_encoder=x", "--audio=a", "--instruction=c"], ["--instruction=c"]),
    (["--speech_encoder=x", "--audio=a", "--ctc_beams=0"], ["--ctc_beams=0"]),
    (["--speech_encoder=nowhere", "--audio=a"], ["nowhere does not exist"]),
    (["--speech_encoder={toothless}", "--audio=a"], ["no tokenizer", "vocab.json"]),
    ([f"--speech_encoder={ENCODER}", "--audio=a", "--chunk_seconds=0"], ["--chunk_seconds=0.0"]),
    ([f"--speech_encoder={ENCODER}", "--audio=none.wav"], ["none.wav", "does not exist"]),
  ],
  ids=lambda value: value[-1],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, argv, names):
  toothless(tmp_path / "toothless")
  argv = [one.format(toothless=tmp_path / "toothless") for one in argv]
  assert main(["infer", "--ctc", *argv]) == 2
  check_one_line(capsys, names)


def check_one_line(capsys, names):
  error = capsys.readouterr().err
  assert error.startswith("slm_jax: error: ") and error.count("\n") == 1
  for name in names:
    assert name in error


def test_an_encoder_without_a_head_and_its_limit(tmp_path, capsys, monkeypatch):
  config = WhisperConfig(
    num_layers=1, model_dim=8, num_heads=2, ffn_dim=8,
    log_mel=WhisperLogMelConfig(num_samples=16_000),
  )  # fmt: skip
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(config))
  save_speech_encoder(tmp_path / "whisper", config, zeros)
  argv = [f"--speech_encoder={tmp_path / 'whisper'}", "--audio=a.wav"]
  assert main(["infer", "--ctc", *argv]) == 2
  check_one_line(capsys, ["whisper has no CTC head"])
  # No family with a limit has a head: the shipped one is given a limit.
  monkeypatch.setattr(ConformerConfig, "max_samples", 32_000)
  argv = [f"--speech_encoder={ENCODER}", f"--audio={SAMPLE}"]
  assert main(["infer", "--ctc", *argv, "--chunk_seconds=2.5"]) == 2
  check_one_line(capsys, ["--chunk_seconds=2.5", "limit of 2"])
