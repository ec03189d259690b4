"""What every family of speech encoders must satisfy, as checks that its tests call.

`encoder` is a loaded `SpeechEncoderModel`, `audio` int16 [B, S], `lengths` [B] in samples, at least
one of them below S.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.interop import load_speech_encoder
from slm_jax.interop.speech_encoder_folder import save_speech_encoder
from slm_jax.models.partitioning import RULES
from slm_jax.models.speech_encoder import SpeechEncoderConfig
from slm_jax.models.speech_encoder_model import SpeechEncoderModel
from slm_jax.models.speech_encoders.families import make_speech_encoder


def check_frame_counts(encoder: SpeechEncoderModel, audio, lengths, expected) -> None:
  """Real frames are as many as `expected` [B], which an independent reference gave, and first."""
  out, config = encoder(audio, lengths), encoder.config
  num_frames = config.num_frames(audio.shape[1])
  assert out.frames.shape == (len(lengths), num_frames, config.frame_dim)
  assert out.mask.shape == (len(lengths), num_frames) and out.mask.dtype == jnp.bool_
  counts = [config.num_frames(int(n)) for n in lengths]
  assert counts == list(expected) == np.asarray(out.mask).sum(axis=1).tolist()
  assert (np.asarray(out.mask) == (np.arange(num_frames) < np.array(counts)[:, None])).all()


def check_padding_changes_nothing(
  encoder: SpeechEncoderModel, audio, lengths, *, longer: int | None = None, atol: float = 1e-5
) -> None:
  """Noise past the lengths and a longer S change no real frame; frames and features are 0 there.

  `longer` is the longer S; None: 1000 more.
  """
  outs, features = [], []
  size = audio.shape[1] + 1000 if longer is None else longer
  real = np.arange(audio.shape[1]) < np.asarray(lengths)[:, None]
  rng = np.random.default_rng(0)
  loud = np.where(real, audio, rng.integers(-30_000, 30_000, audio.shape)).astype(np.int16)
  stretched = rng.integers(-30_000, 30_000, (len(audio), size)).astype(np.int16)
  stretched[:, : audio.shape[1]] = loud
  for one in (np.where(real, audio, 0).astype(np.int16), loud, stretched):
    out = encoder(one, lengths)
    assert not np.asarray(out.frames)[~np.asarray(out.mask)].any()
    assert np.isfinite(np.asarray(out.frames)).all()
    outs.append(out)
    values, mask = (np.asarray(x) for x in encoder.features(one, lengths))
    assert not values[~mask].any()
    features.append((values, mask))
  first, mask = outs[0], np.asarray(outs[0].mask)
  num_frames = mask.shape[1]
  for other in outs[1:]:
    assert np.asarray(other.mask).sum() == mask.sum()
    np.testing.assert_allclose(other.frames[:, :num_frames][mask], first.frames[mask], atol=atol)
    if first.ctc_logits is not None:
      logits = np.asarray(other.ctc_logits)[:, :num_frames][mask]
      np.testing.assert_allclose(logits, np.asarray(first.ctc_logits)[mask], atol=atol)
  values, mask = features[0]
  for other, other_mask in features[1:]:
    assert other_mask.sum() == mask.sum()
    np.testing.assert_allclose(other[:, : mask.shape[1]][mask], values[mask], atol=atol)


def check_int16_is_float(encoder: SpeechEncoderModel, audio, lengths, *, atol=1e-5) -> None:
  """int16 samples and the same as floats in [-1, 1] give the same."""
  first, second = encoder(audio, lengths), encoder(audio / np.float32(32768), lengths)
  np.testing.assert_allclose(second.frames, first.frames, atol=atol)


def check_axes(config: SpeechEncoderConfig) -> None:
  """Every parameter names all of its axes, each of which has a rule."""
  module = make_speech_encoder(config)
  audio, lengths = jnp.zeros((1, 1280), jnp.int16), jnp.array([1280])
  boxed = jax.eval_shape(module.init, jax.random.key(0), audio, lengths)["params"]
  leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  for leaf in leaves:
    assert isinstance(leaf, nn.LogicallyPartitioned), leaf
    assert len(leaf.names) == len(leaf.value.shape) and set(leaf.names) <= set(RULES), leaf


def check_round_trip(encoder: SpeechEncoderModel, folder: Path) -> None:
  """A saved encoder comes back with the same config and, bit for bit, the same weights."""
  save_speech_encoder(folder, encoder.config, encoder.params)
  found = load_speech_encoder(folder)
  assert found.config == encoder.config
  jax.tree.map(np.testing.assert_array_equal, found.params, encoder.params)


def check_import(source: Path, output: Path) -> None:
  """`slm_jax import` of a published folder gives the encoder that the folder itself gives."""
  from slm_jax.cli.main import main

  assert main(["import", f"--source={source}", f"--output={output}"]) == 0
  expected, found = load_speech_encoder(source), load_speech_encoder(output)
  assert found.config == expected.config
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def check_compute_options(encoder: SpeechEncoderModel, audio, lengths, *, rtol=0.1) -> None:
  """Rematerialised layers give the same frames; bfloat16 gives about the same, in bfloat16."""
  expected = np.asarray(encoder(audio, lengths).frames)

  def frames(**changes):
    config = dataclasses.replace(encoder.config, **changes)
    return SpeechEncoderModel(config, encoder.params)(audio, lengths).frames

  np.testing.assert_allclose(frames(remat="full"), expected, atol=1e-5)
  half = frames(dtype="bfloat16")
  assert half.dtype == jnp.bfloat16
  error = np.linalg.norm(np.asarray(half, np.float32) - expected) / np.linalg.norm(expected)
  assert error < rtol, f"relative error {error:.3f} in bfloat16"
