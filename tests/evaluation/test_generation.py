"""Batching, chunking and regrouping around a model of fixed shapes."""

import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.evaluation import generation
from slm_jax.evaluation.generation import GenerationSettings
from tests.fake_speech_model import CharacterTokenizer, FakeSpeechModel, speak, spell


def _hypothesise(model, requests, batch_size=4, prompt_length=16):
  settings = GenerationSettings(batch_size=batch_size, max_new_tokens=200)
  return list(generation.hypothesise(model, requests, settings, prompt_length=prompt_length))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_texts_come_in_order_at_one_shape(batch_size, count):
  model = FakeSpeechModel()
  words = [[i + 1, i + 20] for i in range(count)]
  results = _hypothesise(model, [(speak(w), ":repeat") for w in words], batch_size)
  assert [r.text for r in results] == [spell(w) for w in words]
  assert model.shapes == {("speech", (batch_size, 1_000), (batch_size, 16), 200)}


def test_long_audio_is_heard_whole_and_once():
  model = FakeSpeechModel(max_samples=1_000)
  long = [i % 90 + 1 for i in range(64)]  # 12,800 samples
  requests = [(speak([5]), ":a"), (speak(long), ":a"), (speak([6]), ":translate")]
  first, middle, last = _hypothesise(model, requests, batch_size=3)
  assert (first.text, middle.text, last.text) == ("w5", spell(long), "W6")
  assert len(middle.chunks) > 8
  assert middle.chunks[0].start == 0 and middle.chunks[-1].stop == len(speak(long))
  assert all(a.stop == b.start for a, b in zip(middle.chunks, middle.chunks[1:], strict=False))


def test_score_is_the_mean_of_the_chunks_and_seconds_their_sum():
  (result,) = _hypothesise(FakeSpeechModel(max_samples=500), [(speak([1] * 8), ":a")])
  assert len(result.chunks) > 1
  assert result.score == pytest.approx(np.mean([c.score for c in result.chunks]))
  assert result.seconds == pytest.approx(sum(c.seconds for c in result.chunks))


def test_requests_are_read_as_needed():
  taken = []

  def requests():
    for i in range(10):
      taken.append(i)
      yield speak([i + 1]), ":a"

  settings = GenerationSettings(batch_size=3)
  next(iter(generation.hypothesise(FakeSpeechModel(), requests(), settings, prompt_length=16)))
  assert taken == [0, 1, 2]


def test_an_instruction_beyond_the_declared_length_is_named():
  with pytest.raises(
    UserError, match="'xxxxxxxxxxxxxxxxxxxx' has 21 tokens, more than the limit of 16"
  ):
    _hypothesise(FakeSpeechModel(), [(speak([1]), "x" * 20)])


def test_ctc_texts_are_joined_over_chunks():
  model = FakeSpeechModel(ctc_drops_first_word=False)
  words = [list(range(1, 30)), [3]]
  texts = generation.transcribe_with_ctc(model, [speak(w) for w in words], 4)
  assert [t.text for t in texts] == [spell(w) for w in words]
  assert model.shapes == {("ctc", (4, 1_000))}


def test_oracle_reads_transcript_then_instruction_at_one_shape():
  model = FakeSpeechModel()
  requests = [("hello", ":repeat"), ("you", ":translate it"), ("there", ":a")]
  answers = generation.answer_texts(model, requests, GenerationSettings(batch_size=2))
  assert list(answers) == ["hello", "YOU", "there"]
  assert model.shapes == {("text", (2, 32))}


def test_decoding_stops_at_eos_and_drops_padding_and_foreign_ids():
  tokenizer = CharacterTokenizer()
  a, b = tokenizer.encode("ab")
  ids = np.asarray([0, a, 0, tokenizer.vocab_size() + 5, b, 1, a, a], np.int32)
  assert generation.decode_ids(tokenizer, ids) == "ab"
  assert generation.decode_ids(tokenizer, [1]) == ""


@pytest.mark.parametrize(("lengths", "expected"), [([], 16), ([1], 16), ([16], 16), ([3, 17], 32)])
def test_padded_length(lengths, expected):
  assert generation.padded_length(lengths) == expected


def test_pad_rows():
  np.testing.assert_array_equal(generation.pad_rows([[5], [6, 7]], 3), [[5, 0, 0], [6, 7, 0]])
  with pytest.raises(ValueError, match="row 0 has 2 tokens"):
    generation.pad_rows([[5, 6]], 1)


@pytest.mark.parametrize(
  "bad",
  [{"batch_size": 0}, {"max_new_tokens": 0}, {"num_beams": 0}, {"length_penalty": float("nan")}],
)
def test_settings_are_checked(bad):
  with pytest.raises(ValueError, match="must be"):
    GenerationSettings(**bad)
