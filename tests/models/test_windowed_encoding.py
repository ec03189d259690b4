"""Long audio in windows: the frames of one pass, wherever it is cut, and one compiled shape."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.speech_encoder_model import SpeechEncoderModel
from slm_jax.models.speech_encoders.usm import USMEncoder
from slm_jax.models.windowed_encoding import window_lengths

LOCAL = ConformerConfig(
  num_layers=2, model_dim=16, num_heads=2, num_mel_bins=16, subsampling_channels=(4, 4),
  vocab_size=9, attention="local", left_context=4, right_context=3,
)  # fmt: skip
CHUNK = dataclasses.replace(LOCAL, attention="chunk", chunk_size=5)
RNG = np.random.default_rng(0)
AUDIO = (RNG.normal(size=61_111) * 3000).astype(np.int16)  # 96 frames, the last one not whole


@pytest.fixture(scope="module", params=[LOCAL, CHUNK], ids=["local", "chunk"])
def encoder(request):
  shapes = jax.eval_shape(
    USMEncoder(request.param).init, jax.random.key(0), AUDIO[None], np.array([len(AUDIO)])
  )
  params = jax.tree.map(
    lambda x: RNG.normal(0.1, 0.3, x.shape).astype(np.float32), nn.unbox(shapes)["params"]
  )
  return SpeechEncoderModel(request.param, params)


def joined(encoder, audio, **options) -> tuple[np.ndarray, np.ndarray]:
  parts = list(encoder.windows(audio, **options))
  starts = [part.start for part in parts]
  assert starts == sorted(set(starts))
  return (
    np.concatenate([part.frames for part in parts]),
    np.concatenate([part.ctc_logits for part in parts]),
  )


@pytest.mark.parametrize("keep_seconds", [0.4, 1.0, 5.0])
def test_frames_are_those_of_one_pass(encoder, keep_seconds):
  """Two layers of attention and convolutions reach 12 frames back, or three chunks of 5."""
  whole = encoder(AUDIO[None], [len(AUDIO)])
  frames, logits = joined(encoder, AUDIO, keep_seconds=keep_seconds, context_seconds=0.72)
  assert frames.shape == whole.frames[0].shape == (96, 16)
  np.testing.assert_allclose(frames, whole.frames[0], atol=1e-5)
  np.testing.assert_allclose(logits, whole.ctc_logits[0], atol=1e-5)


def test_context_is_what_makes_them_so(encoder):
  whole = encoder(AUDIO[None], [len(AUDIO)])
  frames, _ = joined(encoder, AUDIO, keep_seconds=0.4, context_seconds=0.0)
  assert np.abs(frames - whole.frames[0]).max() > 1e-4


def test_windows_start_where_frames_and_chunks_do(encoder):
  unit = encoder.config.window_unit
  assert unit == {"local": 640, "chunk": 3200}[encoder.config.attention]
  kept, context = window_lengths(encoder.config, keep_seconds=0.41, context_seconds=0.01)
  assert kept % unit == context % unit == 0 and 6560 <= kept < 6560 + unit and context == unit


@pytest.mark.parametrize("length", [1, 639, 640, 6400, 6401])
def test_short_and_even_lengths(encoder, length):
  frames, _ = joined(encoder, AUDIO[:length], keep_seconds=0.2, context_seconds=0.72)
  assert len(frames) == encoder.config.num_frames(length)
  whole = encoder(AUDIO[None, :length], [length])
  np.testing.assert_allclose(frames, whole.frames[0], atol=1e-5)


def test_one_shape_whatever_the_length(encoder):
  model = SpeechEncoderModel(encoder.config, encoder.params)
  for length in (5_000, 20_000, len(AUDIO)):
    joined(model, AUDIO[:length], keep_seconds=0.4, context_seconds=0.4)
  assert model._encode._cache_size() == 1  # pyright: ignore


def test_windows_without_sizes_fit_what_the_encoder_takes(encoder):
  class Fixed(ConformerConfig):
    max_samples = 16_000

  fields = {f.name: getattr(encoder.config, f.name) for f in dataclasses.fields(encoder.config)}
  free = window_lengths(encoder.config, keep_seconds=32.0, context_seconds=16.0)
  assert free == (512_000, 256_000)
  with pytest.raises(ValueError, match="takes 16000"):
    window_lengths(Fixed(**fields), keep_seconds=0.6, context_seconds=0.4)


def test_windows_that_cannot_be_are_refused(encoder):
  with pytest.raises(ValueError, match="keep_seconds=0.0"):
    encoder.windows(AUDIO, keep_seconds=0.0)
