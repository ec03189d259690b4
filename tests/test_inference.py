"""Inference over files with a model of perfect hearing: chunks, order, bad input, atomic output."""

import json
import os

import numpy as np
import pytest
import soundfile

from slm_jax import inference
from slm_jax.errors import UserError
from slm_jax.evaluation.generation import GenerationSettings
from slm_jax.inference import InferenceRequest
from tests.fake_speech_model import FakeSpeechModel, speak, spell

SETTINGS = GenerationSettings(batch_size=3, max_new_tokens=64)


def _write(path, words, rate=16_000):
  soundfile.write(path, speak(words), rate, subtype="PCM_16")
  return str(path)


def _infer(requests, output, model=None, **arguments):
  arguments = {"show_progress": False, **arguments}
  summary = inference.infer(model or FakeSpeechModel(), requests, output, SETTINGS, **arguments)
  text = output.read_text(encoding="utf-8")
  return summary, [json.loads(line) for line in text.split("\n") if line]


def test_every_instruction_for_every_file_in_order(tmp_path):
  words = [[1, 2], [3], [4, 5]]
  audio = [_write(tmp_path / f"{i}.wav", w) for i, w in enumerate(words)]
  requests = inference.requests_from_flags(audio, [":repeat", ":translate"])
  summary, lines = _infer(requests, tmp_path / "out" / "a.jsonl")
  assert [line["inputs"]["audio"] for line in lines] == [a for a in audio for _ in range(2)]
  assert [line["prediction"] for line in lines] == [
    text for w in words for text in (spell(w), spell(w).upper())
  ]
  assert lines[0]["inputs"] == {
    "audio": audio[0],
    "instruction": ":repeat",
    "duration": len(speak(words[0])) / 16_000,
  }
  assert (summary.requests, summary.bad_audio) == (6, 0)
  assert summary.audio_seconds == pytest.approx(sum(line["inputs"]["duration"] for line in lines))


def test_long_audio_goes_in_chunks_that_cover_it(tmp_path):
  words = [i % 90 + 1 for i in range(40)]
  requests = [
    InferenceRequest(audio=_write(tmp_path / "a.flac", [9]), instruction=":a"),
    InferenceRequest(audio=_write(tmp_path / "b.flac", words), instruction=":a", id="long"),
  ]
  model = FakeSpeechModel(max_samples=1_000)
  _, (short, long) = _infer(requests, tmp_path / "out.jsonl", model)
  assert short["prediction"] == "w9" and "id" not in short["inputs"]
  assert long["prediction"] == spell(words) and long["inputs"]["id"] == "long"
  chunks = long["chunks"]
  assert len(chunks) > 7
  assert chunks[0]["start"] == 0.0 and chunks[-1]["end"] == long["inputs"]["duration"]
  assert all(a["end"] == b["start"] for a, b in zip(chunks, chunks[1:], strict=False))
  assert long["score"] == pytest.approx(np.mean([chunk["score"] for chunk in chunks]))
  assert set(long["timings"]) == {"read", "generate", "real_time_factor"}
  assert len(model.shapes) == 1


def test_any_rate_and_channel_count(tmp_path):
  path = tmp_path / "stereo.wav"
  soundfile.write(path, np.zeros((48_000, 2), np.int16), 48_000)
  _, (line,) = _infer([InferenceRequest(audio=str(path), instruction=":a")], tmp_path / "o.jsonl")
  assert line["inputs"]["duration"] == pytest.approx(1.0, abs=1e-3)
  assert line["prediction"] == ""


def test_one_file_is_decoded_once_for_all_its_instructions(tmp_path, monkeypatch):
  read = []
  monkeypatch.setattr(inference, "read_audio", lambda path: read.append(path) or speak([1]))
  requests = inference.requests_from_flags([_write(tmp_path / "a.wav", [1])], [":a", ":b", ":c"])
  _infer(requests, tmp_path / "o.jsonl")
  assert len(read) == 1


def test_a_file_name_that_is_not_utf_8(tmp_path):
  path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav"))
  os.rename(_write(tmp_path / "a.wav", [7]), path)
  _, (line,) = _infer([InferenceRequest(audio=path, instruction=":a")], tmp_path / "o.jsonl")
  assert line["inputs"]["audio"] == path and line["prediction"] == "w7"


# --- bad audio -------------------------------------------------------------------------------


def _mixed(tmp_path):
  nan = tmp_path / "nan.wav"
  soundfile.write(nan, np.full(10, np.nan, "float32"), 16_000, subtype="FLOAT")
  text = tmp_path / "text.wav"
  text.write_text("not audio")
  good = [_write(tmp_path / f"{i}.wav", [i]) for i in (1, 2)]
  return [
    InferenceRequest(audio=audio, instruction=":a")
    for audio in (str(nan), good[0], str(text), good[1], str(tmp_path / "missing.wav"))
  ]


def test_bad_audio_is_fatal_before_any_work_and_nothing_is_overwritten(tmp_path):
  requests, output, model = _mixed(tmp_path), tmp_path / "o.jsonl", FakeSpeechModel()
  output.write_text("old")
  before = sorted(tmp_path.iterdir())
  with pytest.raises(UserError, match=r"text\.wav.*2 requests have bad audio, 0 allowed"):
    _infer(requests, output, model)
  assert output.read_text() == "old" and sorted(tmp_path.iterdir()) == before
  assert model.calls == 0


def test_damage_found_late_leaves_the_old_output(tmp_path):
  good, nan = _mixed(tmp_path)[1], _mixed(tmp_path)[0]
  output = tmp_path / "o.jsonl"
  output.write_text("old")
  before = sorted(tmp_path.iterdir())
  with pytest.raises(UserError, match=r"nan\.wav.*--max_bad_audio=1"):
    _infer([good, good, good, nan], output)
  assert output.read_text() == "old" and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("show_progress", [True, False])
def test_bad_audio_within_the_budget_is_named_counted_and_kept_in_place(
  tmp_path, capsys, show_progress
):
  requests = _mixed(tmp_path)
  summary, lines = _infer(
    requests, tmp_path / "o.jsonl", max_bad_audio=3, show_progress=show_progress
  )
  assert (summary.requests, summary.bad_audio) == (5, 3)
  assert [line["inputs"]["audio"] for line in lines] == [r.audio for r in requests]
  assert [line["prediction"] for line in lines] == [None, "w1", None, "w2", None]
  assert "NaN" in lines[0]["error"] and "text file" in lines[2]["error"]
  captured = capsys.readouterr()
  assert captured.out == ""
  for name in ("nan.wav", "text.wav", "missing.wav"):
    assert captured.err.count(name) == 1


def test_a_budget_that_is_too_small_is_fatal(tmp_path):
  with pytest.raises(UserError, match="3 requests have bad audio, 2 allowed"):
    _infer(_mixed(tmp_path), tmp_path / "o.jsonl", max_bad_audio=2)
  assert not (tmp_path / "o.jsonl").exists()


def test_only_bad_audio_within_the_budget(tmp_path):
  requests = [InferenceRequest(audio=str(tmp_path / "x.wav"), instruction=":a")] * 2
  summary, lines = _infer(requests, tmp_path / "o.jsonl", max_bad_audio=2)
  assert (summary.bad_audio, len(lines), summary.audio_seconds) == (2, 2, 0.0)


def test_the_output_may_not_be_an_input_or_a_directory(tmp_path):
  audio = tmp_path / "a.wav"
  request = InferenceRequest(audio=_write(audio, [1]), instruction=":a")
  with pytest.raises(UserError, match="is one of the inputs"):
    _infer([request], audio)
  with pytest.raises(UserError, match="is a directory"):
    _infer([request], tmp_path)
  manifest = tmp_path / "m.jsonl"
  manifest.write_text('{"audio": "a.wav", "instruction": ":a"}')
  with pytest.raises(UserError, match="is one of the inputs"):
    _infer(inference.read_requests(manifest), manifest)
  with pytest.raises(UserError, match="cannot make its folder"):
    _infer([request], audio / "x" / "o.jsonl")


# --- requests --------------------------------------------------------------------------------


def test_requests_from_jsonl(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_bytes(
    b'\xef\xbb\xbf{"audio": "a.wav", "instruction": "\xc3\xbcbersetze", "id": 7}\r\n\n'
    b'{"audio": "/b.wav", "instruction": "line \xe2\x80\xa8 separator"}'
  )
  first, second = inference.read_requests(path)
  assert (first.audio, first.instruction, first.id) == (str(tmp_path / "a.wav"), "übersetze", 7)
  assert (second.audio, second.instruction, second.id) == ("/b.wav", "line \u2028 separator", None)


@pytest.mark.parametrize(
  ("line", "says"),
  [
    (b'{"audio": "a.wav", "instruction": "caf\xe9"}', "m.jsonl:2: not UTF-8 .byte 0xe9 at 38"),
    (b'{"audio": "a.wav"', "m.jsonl:2: not JSON"),
    (b"[" * 100_000, "m.jsonl:2: not JSON"),
    (b'["a.wav"]', "m.jsonl:2: expected a JSON object, got list"),
    (b'{"audio": "a.wav"}', "m.jsonl:2: field 'instruction' is missing"),
    (b'{"instruction": "x"}', "m.jsonl:2: field 'audio' is missing"),
    (b'{"audio": 3, "instruction": "x"}', "m.jsonl:2: field 'audio' is 3, expected a string"),
    (b'{"audio": "", "instruction": "x"}', "m.jsonl:2: field 'audio' is empty"),
    (b'{"audio": "a", "instruction": "x", "id": true}', "m.jsonl:2: field 'id' is true"),
    (b'{"audio": "a.wav", "instruction": " "}', "m.jsonl:2: field 'instruction' is empty"),
    (b'{"audio": "a", "instruction": "\\ud800"}', "m.jsonl:2: .* lone surrogate at character 0"),
    (b'{"audio": "a", "instruction": "x", "lang": "de"}', "m.jsonl:2: unknown field 'lang'"),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
  path = tmp_path / "m.jsonl"
  path.write_bytes(b'{"audio": "a.wav", "instruction": "x"}\n' + line + b"\n")
  with pytest.raises(UserError, match=says) as raised:
    inference.read_requests(path)
  assert "\n" not in str(raised.value)


def test_request_files_that_hold_nothing(tmp_path):
  with pytest.raises(UserError, match="cannot be read: No such file"):
    inference.read_requests(tmp_path / "none.jsonl")
  with pytest.raises(UserError, match="cannot be read: Is a directory"):
    inference.read_requests(tmp_path)
  empty = tmp_path / "empty.jsonl"
  empty.write_text("\n")
  with pytest.raises(UserError, match="no request"):
    inference.read_requests(empty)


def test_missing_flags_are_named():
  with pytest.raises(UserError, match="--audio"):
    inference.requests_from_flags([], ["x"])
  with pytest.raises(UserError, match="--instruction"):
    inference.requests_from_flags(["a.wav"], [])
  with pytest.raises(UserError, match="--instruction is empty"):
    inference.requests_from_flags(["a.wav"], [""])


def test_no_requests_and_a_negative_budget_are_refused(tmp_path):
  with pytest.raises(UserError, match="no request"):
    _infer([], tmp_path / "o.jsonl")
  with pytest.raises(UserError, match="--max_bad_audio=-1"):
    _infer(_mixed(tmp_path), tmp_path / "o.jsonl", max_bad_audio=-1)
