"""Whisper's frontend and encoder against transformers', on a window of one second."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from slm_jax.audio.files import read_audio
from slm_jax.audio.whisper_log_mel import WhisperLogMelConfig, whisper_log_mel
from slm_jax.errors import UserError
from slm_jax.interop import load_speech_encoder, open_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.whisper import WhisperConfig
from tests import encoder_contract as contract

WINDOW = 16_000
SHAPE: dict[str, Any] = dict(
  d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=80,
  max_source_positions=50, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8,
  vocab_size=32, max_target_positions=8, pad_token_id=0, bos_token_id=0, eos_token_id=0,
  decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[],
)  # fmt: skip
RNG = np.random.default_rng(0)
# Odd lengths, one sample beyond a hop and a frame, and one sample alone; loud, soft and in between.
LENGTHS = np.array([15_999, 9_601, 1], np.int32)
AUDIO = (RNG.normal(size=(3, 15_999)) * [[3000], [20], [900]]).astype(np.int16)
DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def theirs():
  torch.manual_seed(0)
  model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SHAPE)).eval()
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter.data, 0.05, 0.25)
  return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  path = tmp_path_factory.mktemp("whisper")
  theirs.save_pretrained(path)
  transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1).save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def ours(folder):
  return load_speech_encoder(folder)


def reference(
  theirs, folder, waveforms: list[np.ndarray]
) -> tuple[np.ndarray, list[int], np.ndarray]:
  """Their features [B, T', F], number of real ones, and hidden states [B, T, D] of int16 waves."""
  extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
  found = extractor(
    [wave / np.float32(32768) for wave in waveforms], sampling_rate=16_000, return_tensors="pt",
    return_attention_mask=True,
  )  # fmt: skip
  with torch.no_grad():
    states = theirs.model.encoder(found["input_features"]).last_hidden_state
  features = found["input_features"].transpose(1, 2)
  return features.numpy(), found["attention_mask"].sum(1).tolist(), states.numpy()


def rows(audio=AUDIO, lengths=LENGTHS):
  return [row[:n] for row, n in zip(audio, lengths, strict=True)]


def test_features_and_frames_are_theirs(theirs, folder, ours):
  features, counts, states = reference(theirs, folder, rows())
  assert counts == [100, 61, 1]
  found, mask = ours.features(AUDIO, LENGTHS)
  assert np.asarray(mask).sum(axis=1).tolist() == counts
  for row, count in enumerate(counts):
    np.testing.assert_allclose(found[row, :count], features[row, :count], atol=1e-4)
  out = ours(AUDIO, LENGTHS)
  assert out.ctc_logits is None
  for row, count in enumerate([50, 31, 1]):
    np.testing.assert_allclose(out.frames[row, :count], states[row, :count], atol=1e-4)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("num_samples", [1, 199, 7_999, 15_800, 15_801, WINDOW])
def test_the_whole_window_is_theirs_silence_included(bins, num_samples):
  extractor = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
  wave = (RNG.normal(size=num_samples) * 3000).astype(np.int16)
  expected = extractor(wave / np.float32(32768), sampling_rate=16_000)["input_features"][0].T
  config = WhisperLogMelConfig(num_mel_bins=bins, num_samples=WINDOW)
  found, mask = whisper_log_mel(jnp.asarray(wave)[None], jnp.array([num_samples]), config)
  np.testing.assert_allclose(found[0], expected, atol=1e-4)
  assert np.asarray(mask).sum() == -(-num_samples // 160)


def test_counts_padding_and_types(ours):
  contract.check_frame_counts(ours, AUDIO, LENGTHS, [50, 31, 1])
  contract.check_padding_changes_nothing(ours, AUDIO, LENGTHS, longer=WINDOW)
  contract.check_int16_is_float(ours, AUDIO, LENGTHS)
  contract.check_compute_options(ours, AUDIO, LENGTHS)
  contract.check_axes(ours.config)


def test_a_batch_longer_than_the_window_is_refused(ours):
  assert ours.config.max_samples == WINDOW and ours.config.num_frames(WINDOW) == 50
  with pytest.raises(ValueError, match=r"16001 samples .* window of 16000"):
    ours(np.zeros((1, WINDOW + 1), np.int16), [5])
  with pytest.raises(ValueError, match="16001"):
    ours.config.num_frames(WINDOW + 1)


def test_saved_and_imported(folder, ours, tmp_path):
  contract.check_round_trip(ours, tmp_path / "own")
  contract.check_import(folder, tmp_path / "imported")


def test_the_bare_model_and_a_missing_extractor(theirs, folder, ours, tmp_path):
  theirs.model.save_pretrained(tmp_path)
  shutil.copy(folder / "preprocessor_config.json", tmp_path)
  bare = load_speech_encoder(tmp_path)
  np.testing.assert_array_equal(bare(AUDIO, LENGTHS).frames, ours(AUDIO, LENGTHS).frames)
  # Without one, settings are the published ones, whose window of 30 s has 1,500 frames.
  (tmp_path / "preprocessor_config.json").unlink()
  with pytest.raises(UserError, match=r"max_source_positions is 50, .* 1500 frames"):
    load_speech_encoder(tmp_path)
  change(tmp_path / "config.json", max_source_positions=1500)
  with pytest.raises(UserError, match=r"embed_positions.weight is \[50, 16\]"):
    load_speech_encoder(tmp_path)


def test_another_head_is_passed_over(theirs, folder, ours, tmp_path):
  model = transformers.WhisperForAudioClassification(theirs.config)
  model.encoder.load_state_dict(theirs.model.encoder.state_dict())
  model.save_pretrained(tmp_path)
  shutil.copy(folder / "preprocessor_config.json", tmp_path)
  found = load_speech_encoder(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, found.params, ours.params)


def change(file: Path, **changes):
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
  ("file", "changes", "says"),
  [
    ("config.json", dict(activation_function="relu"), 'activation_function is "relu"'),
    ("config.json", dict(encoder_attention_heads=3), "num_heads=3"),
    ("config.json", dict(encoder_layers=4), "lacks 15 tensors .* model.encoder.layers.3"),
    ("config.json", dict(encoder_layers=2), "no place for: model.encoder.layers.2"),
    ("preprocessor_config.json", dict(dither=1e-5), "dither is 1e-05"),
    ("preprocessor_config.json", dict(sampling_rate=8000), "sampling_rate is 8000"),
    ("preprocessor_config.json", dict(feature_size=128), "feature_size is 128"),
    ("preprocessor_config.json", dict(chunk_length=2), "window of 32000 samples has 100 frames"),
    ("preprocessor_config.json", dict(hop_length=7), "hops of 7"),
  ],
)
def test_what_is_not_supported_is_named(folder, tmp_path, file, changes, says):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  change(copy / file, **changes)
  with pytest.raises(UserError, match=says) as raised:
    open_speech_encoder(copy)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("layers", "width", "heads", "bins"),
  [(4, 384, 6, 80), (32, 1280, 20, 128)],
  ids=["tiny", "large"],
)
def test_published_sizes(layers, width, heads, bins):
  shape: dict[str, Any] = dict(d_model=width, encoder_layers=layers, encoder_attention_heads=heads)
  shape |= dict(encoder_ffn_dim=4 * width, num_mel_bins=bins)
  with torch.device("meta"):
    encoder = WhisperEncoder(transformers.WhisperConfig(**shape))
  config = WhisperConfig(
    num_layers=layers, model_dim=width, num_heads=heads, ffn_dim=4 * width,
    log_mel=WhisperLogMelConfig(num_mel_bins=bins),
  )  # fmt: skip
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  assert count == sum(parameter.numel() for parameter in encoder.parameters())
  assert config.num_frames(480_000) == 1500 and config.frame_samples == 320


def test_real_recordings(theirs, folder, ours):
  files = [next(iter(sorted(folder.rglob("*.*")))) for folder in sorted(DATA.glob("*/audio"))]
  if not files:
    pytest.skip(f"no recordings in {DATA}")
  waves = [read_audio(file)[:WINDOW] for file in files]
  lengths = [len(wave) for wave in waves]
  audio = np.stack([np.pad(wave, (0, WINDOW - len(wave))) for wave in waves])
  features, counts, states = reference(theirs, folder, waves)
  found, mask = ours.features(audio, lengths)
  assert np.asarray(mask).sum(axis=1).tolist() == counts
  out = ours(audio, lengths)
  for row, count in enumerate(counts):
    np.testing.assert_allclose(found[row, :count], features[row, :count], atol=1e-4)
    real = -(-count // 2)
    np.testing.assert_allclose(out.frames[row, :real], states[row, :real], atol=1e-4)
