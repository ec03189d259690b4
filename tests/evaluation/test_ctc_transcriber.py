"""Transcripts of an encoder alone, with one of perfect hearing: chunks, order, shapes, beams."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from slm_jax import inference
from slm_jax.evaluation.ctc_transcriber import CtcTranscriber
from slm_jax.inference import InferenceRequest
from slm_jax.models.speech_encoder import SpeechEncoderOutput
from tests.fake_speech_model import SAMPLES_PER_WORD, speak, spell


class PerfectEncoder:
  """Its classes are the words that `speak` says, 0 the pause between them; certain of each frame."""

  def __init__(self, *, vocab_size=100, max_samples=None, certainty=30.0):
    self.config = SimpleNamespace(vocab_size=vocab_size, max_samples=max_samples)
    self.tokenizer = SimpleNamespace(decode=spell)
    self.certainty, self.shapes = certainty, set()

  def __call__(self, audio, lengths):
    self.shapes.add(audio.shape)
    half = SAMPLES_PER_WORD // 2
    heard = audio[:, half // 2 :: half]
    frames = np.arange(heard.shape[1]) * half + half // 2
    mask = frames < np.asarray(lengths)[:, None]
    logits = np.where(np.arange(100) == heard[..., None], self.certainty, 0.0)
    frames = np.zeros((*mask.shape, 1))
    return SpeechEncoderOutput(frames=frames, mask=mask, ctc_logits=logits.astype(np.float32))  # pyright: ignore


def hear(encoder, recordings, batch_size=3, max_samples=1_600, **options):
  transcriber = CtcTranscriber(encoder, max_samples, **options)
  return list(transcriber.hypothesise(recordings, batch_size))


@pytest.mark.parametrize("num_beams", [1, 4])
def test_long_and_short_recordings_in_order_and_whole(num_beams):
  long = [i % 90 + 1 for i in range(40)]
  words = [[5, 5, 6], long, [7], [8]]
  results = hear(PerfectEncoder(), [speak(w) for w in words], num_beams=num_beams)
  assert [result.text for result in results] == [spell(w) for w in words]
  chunks = results[1].chunks
  assert len(chunks) > 4 and chunks[0].start == 0 and chunks[-1].stop == len(speak(long))
  assert all(a.stop == b.start for a, b in zip(chunks, chunks[1:], strict=False))
  scores = [result.score for result in results]
  if num_beams == 1:
    assert all(math.isnan(score) for score in scores)
  else:
    np.testing.assert_allclose(scores, 0.0, atol=1e-4)


def test_a_score_is_the_texts_log_probability():
  (result,) = hear(PerfectEncoder(certainty=5.0), [speak([7])], num_beams=8)
  assert result.text == "w7"
  # Two frames of the word, two of silence: paths 7700, 7000, 7777, …, all but one of them unlikely.
  p, q = math.e**5 / (math.e**5 + 99), 1 / (math.e**5 + 99)
  likely = p**4 + 2 * p**3 * q + 2 * p**3 * q
  assert math.log(p**4) < result.score < 0
  assert result.score == pytest.approx(math.log(likely), abs=0.02)


def test_few_shapes_none_longer_than_needed():
  encoder = PerfectEncoder()
  words = [[1], [2, 3], [4] * 4, [5] * 8, [6] * 30]
  results = hear(encoder, [speak(w) for w in words], batch_size=1, max_samples=6_400)
  assert [result.text for result in results] == [spell(w) for w in words]
  assert encoder.shapes == {(1, 400), (1, 800), (1, 1_600), (1, 6_400)}


@pytest.mark.parametrize(
  ("encoder", "options", "says"),
  [
    (dict(vocab_size=0), {}, "no CTC head"),
    (dict(max_samples=1_000), {}, "max_samples=1600.*at most 1000"),
    ({}, dict(num_beams=0), "num_beams=0"),
  ],
)
def test_what_cannot_transcribe_is_refused(encoder, options, says):
  with pytest.raises(ValueError, match=says):
    hear(PerfectEncoder(**encoder), [], **options)


def test_lines_have_no_instruction(tmp_path):
  requests = tmp_path / "requests.jsonl"
  requests.write_text('{"audio": "a.wav", "id": 3}\n{"audio": "b.wav"}\n{"audio": "none.wav"}\n')
  for name, words in (("a.wav", [1, 2]), ("b.wav", [3] * 20)):
    soundfile.write(tmp_path / name, speak(words), 16_000, subtype="PCM_16")
  read = inference.read_requests(requests, instructed=False)
  output = tmp_path / "out.jsonl"
  summary = inference.transcribe(
    CtcTranscriber(PerfectEncoder(), 1_600), read, output, 2, max_bad_audio=1, show_progress=False
  )  # fmt: skip
  assert (summary.requests, summary.bad_audio) == (3, 1)
  first, second, missing = map(json.loads, output.read_text().splitlines())
  assert first["inputs"] == {"audio": str(tmp_path / "a.wav"), "id": 3, "duration": 400 / 16_000}
  assert first["prediction"] == "w1 w2" and first["score"] is None
  assert second["prediction"] == spell([3] * 20) and len(second["chunks"]) > 1
  assert missing["prediction"] is None and "does not exist" in missing["error"]


def test_an_instruction_in_the_requests_is_no_field(tmp_path):
  requests = tmp_path / "requests.jsonl"
  requests.write_text('{"audio": "a.wav", "instruction": "x"}')
  with pytest.raises(inference.UserError, match="unknown field 'instruction'"):
    inference.read_requests(requests, instructed=False)
  requests.write_text("")
  with pytest.raises(inference.UserError, match='expected lines {"audio": "a.wav"}$'):
    inference.read_requests(requests, instructed=False)
  assert InferenceRequest(audio="a.wav").instruction is None
