"""A saved encoder comes back the same; a damaged or foreign folder is named in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slm_jax.audio.log_mel import LogMelConfig
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params, save_speech_encoder
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.speech_encoders.usm import USMEncoder

CONFIG = ConformerConfig(
  num_layers=2, model_dim=8, num_heads=2, num_mel_bins=16, subsampling_channels=(3, 4),
  vocab_size=9, log_mel=LogMelConfig(mean=-6.0), spec_augment=SpecAugmentConfig(num_time_masks=1),
)  # fmt: skip
AUDIO = (np.random.default_rng(0).normal(size=(2, 3200)) * 3000).astype(np.int16)
LENGTHS = [3200, 1500]


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.1, 0.3, x.shape), jnp.float32), abstract_params(CONFIG)
  )


def test_round_trip(params, tmp_path):
  save_speech_encoder(tmp_path, CONFIG, params)
  loaded = load_speech_encoder(tmp_path)
  assert loaded.config == CONFIG and loaded.tokenizer is None
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  module, lengths = USMEncoder(CONFIG), jnp.array(LENGTHS)
  expected = jax.jit(module.apply)({"params": params}, AUDIO, lengths)
  out = loaded(AUDIO, LENGTHS)
  np.testing.assert_allclose(out.frames, expected.frames, atol=1e-5)
  np.testing.assert_allclose(out.ctc_logits, expected.ctc_logits, atol=1e-5)
  features, mask = loaded.features(AUDIO, LENGTHS)
  assert features.shape == (2, 20, 16) and mask.sum(axis=1).tolist() == [20, 10]


def test_stored_type_and_cast(params, tmp_path):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  save_speech_encoder(tmp_path, CONFIG, half)

  def types(**options):
    return {str(x.dtype) for x in jax.tree.leaves(load_speech_encoder(tmp_path, **options).params)}

  assert types() == {"bfloat16"} and types(dtype="float32") == {"float32"}
  with pytest.raises(UserError, match="int4"):
    load_speech_encoder(tmp_path, dtype="int4")
  # Stored in bfloat16, computed in the config's float32.
  assert load_speech_encoder(tmp_path)(AUDIO, LENGTHS).frames.dtype == jnp.float32


def test_tokenizer_travels_along(params, tmp_path):
  import io

  import sentencepiece

  model = io.BytesIO()
  sentences = iter(["the cat sees the dog", "a dog has a red house", "we like tea"] * 20)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=sentences, model_writer=model, vocab_size=24, pad_id=0, eos_id=1, unk_id=2,
    bos_id=-1, minloglevel=2,
  )  # fmt: skip
  source = tmp_path / "pieces.model"
  source.write_bytes(model.getvalue())
  save_speech_encoder(tmp_path / "encoder", CONFIG, params, source)
  tokenizer = load_speech_encoder(tmp_path / "encoder").tokenizer
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(source))
  assert tokenizer.decode(pieces.encode("the red cat")) == "the red cat"


def change_config(folder, **changes):
  file = folder / "config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(model_type="t5"), "model_type is 't5'"),
    (dict(num_layers=3), "do not fit config.json"),
    (dict(vocab_size=0), "no place for"),
    (dict(colour="red"), "colour"),
    (dict(model_dim=9), "model_dim=9"),
  ],
  ids=str,
)
def test_a_config_that_does_not_fit_is_named(params, tmp_path, changes, message):
  save_speech_encoder(tmp_path, CONFIG, params)
  change_config(tmp_path, **changes)
  with pytest.raises(UserError, match=message):
    load_speech_encoder(tmp_path)


def test_missing_and_broken_weights_are_named(params, tmp_path):
  with pytest.raises(UserError, match="nowhere"):
    load_speech_encoder(tmp_path / "nowhere")
  save_speech_encoder(tmp_path, CONFIG, params)
  weights = tmp_path / "model.safetensors"
  tensors = load_file(weights)
  save_file({**tensors, "ctc_head.bias": tensors["ctc_head.bias"] * np.nan}, weights)
  with pytest.raises(UserError, match="ctc_head.bias"):
    load_speech_encoder(tmp_path)
  del tensors["ctc_head.bias"]
  save_file(tensors, weights)
  with pytest.raises(UserError, match="lacks 1 tensors .* ctc_head.bias"):
    load_speech_encoder(tmp_path)
