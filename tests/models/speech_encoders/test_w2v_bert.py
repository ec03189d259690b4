"""w2v-BERT 2.0 against transformers': frames, CTC logits, counts, padding."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from slm_jax.interop import load_speech_encoder
from slm_jax.interop.speech_encoder_folder import abstract_params
from slm_jax.models.speech_encoders.w2v_bert_attention import clipped_shift
from slm_jax.models.speech_encoders.w2v_bert_config import W2vBertAdapterConfig, W2vBertConfig
from tests import encoder_contract as contract
from tests.torch_conformers import recordings, rows

SHAPE: dict[str, Any] = dict(
  hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
  feature_projection_input_dim=160, conv_depthwise_kernel_size=5, vocab_size=11, pad_token_id=10,
  left_max_position_embeddings=6, right_max_position_embeddings=2,
)  # fmt: skip
ADAPTER: dict[str, Any] = dict(add_adapter=True, adapter_act="gelu")
VARIANTS: dict[str, dict[str, Any]] = {
  "plain": {},
  "relative": dict(position_embeddings_type="relative", hidden_act="gelu"),
  "rotary": dict(position_embeddings_type="rotary", rotary_embedding_base=100, hidden_act="relu"),
  "none": dict(position_embeddings_type=None, hidden_act="gelu_new", layer_norm_eps=1e-2),
  "adapter": dict(
    **ADAPTER, num_adapter_layers=2, output_hidden_size=12, use_intermediate_ffn_before_adapter=True
  ),
  "wide_stride": dict(**ADAPTER, adapter_kernel_size=4, adapter_stride=5, hidden_act="silu"),
}
# 21 pairs of mel frames; 15, and one frame without a partner; one pair alone.
LENGTHS = np.array([7_030, 5_200, 560], np.int32)
AUDIO = (np.random.default_rng(0).normal(size=(3, 7_030)) * [[3000], [20], [900]]).astype(np.int16)


def published(folder: Path, **changes):
  """A folder as transformers saves it, of a model whose every parameter matters; and the model."""
  torch.manual_seed(0)
  config = transformers.Wav2Vec2BertConfig(**{**SHAPE, **changes})
  model = transformers.Wav2Vec2BertForCTC(config).eval()
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter.data, 0.05, 0.3)
  model.save_pretrained(folder)
  transformers.SeamlessM4TFeatureExtractor(padding_value=1.0).save_pretrained(folder)
  return model


def reference(model, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Their real frames [T, D] and logits [T, V] of one int16 waveform, alone in its batch."""
  extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
  inputs = extractor(wave / np.float32(32768), sampling_rate=16_000, return_tensors="pt")
  with torch.no_grad():
    frames = model.wav2vec2_bert(**inputs).last_hidden_state
    logits = model.lm_head(frames)
  count = int(model._get_feat_extract_output_lengths(inputs["attention_mask"].sum()))
  return frames[0, :count].numpy(), logits[0, :count].numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return {}, tmp_path_factory.mktemp("w2v_bert")


@pytest.fixture
def loaded(folders):
  """(their model, ours) of a variant's name; each made once."""

  def get(name: str):
    made, root = folders
    if name not in made:
      model = published(root / name, **VARIANTS[name])
      made[name] = model, load_speech_encoder(root / name)
    return made[name]

  return get


@pytest.mark.parametrize("name", VARIANTS)
def test_frames_and_logits_are_theirs(loaded, name):
  theirs, ours = loaded(name)
  out = ours(AUDIO, LENGTHS)
  assert out.blank_id == 10 and out.ctc_logits.dtype == jnp.float32
  counts = []
  for row, wave in enumerate(rows(AUDIO, LENGTHS)):
    frames, logits = reference(theirs, wave)
    counts.append(len(frames))
    np.testing.assert_allclose(out.frames[row, : len(frames)], frames, atol=1e-4)
    np.testing.assert_allclose(out.ctc_logits[row, : len(frames)], logits, atol=1e-4)
  contract.check_frame_counts(ours, AUDIO, LENGTHS, counts)


def test_padding_and_types(loaded):
  _, ours = loaded("adapter")
  contract.check_padding_changes_nothing(ours, AUDIO, LENGTHS)
  contract.check_int16_is_float(ours, AUDIO, LENGTHS)
  _, ours = loaded("wide_stride")
  contract.check_compute_options(ours, AUDIO, LENGTHS)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_name_their_axes(loaded, name):
  contract.check_axes(loaded(name)[1].config)


def test_a_padded_batch_is_theirs_where_padding_does_not_reach(loaded):
  """With an adapter, an odd number of frames without the appended one reads what the batch adds."""
  extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
  waves = [wave / np.float32(32768) for wave in rows(AUDIO, LENGTHS)]
  inputs = extractor(waves, sampling_rate=16_000, return_tensors="pt")
  for name, kept in (("plain", [21, 15, 1]), ("adapter", [6, 4, 0])):
    theirs, ours = loaded(name)
    with torch.no_grad():
      states = theirs.wav2vec2_bert(**inputs).last_hidden_state
    out = ours(AUDIO, LENGTHS)
    for row, count in enumerate(kept):
      np.testing.assert_allclose(out.frames[row, :count], states[row, :count], atol=1e-4)
  features, mask = (np.asarray(x) for x in ours.features(AUDIO, LENGTHS))
  np.testing.assert_array_equal(mask, inputs["attention_mask"])
  expected = inputs["input_features"].numpy()
  np.testing.assert_allclose(features[:2][mask[:2]], expected[:2][mask[:2]], atol=1e-4)
  # Two frames in all: their mean's last digits are large beside the frames' difference.
  np.testing.assert_allclose(features[2, 0], expected[2, 0], atol=1e-3)


@pytest.mark.parametrize(("name", "size"), [("plain", 1), ("adapter", 559)])
def test_too_short_for_a_frame(loaded, name, size):
  _, ours = loaded(name)
  out = ours(AUDIO[:, :size], [size] * 3)
  assert out.frames.shape[:2] == out.mask.shape == (3, 0) and ours.config.num_frames(size) == 0
  out = ours(AUDIO, [7_030, 559, 0])
  assert np.isfinite(out.frames).all() and not np.asarray(out.mask)[1:].any()


def test_two_samples_of_each_hop_count_as_theirs(loaded):
  theirs, ours = loaded("adapter")
  extractor = transformers.SeamlessM4TFeatureExtractor()
  for size in range(560, 4_000, 107):
    inputs = extractor(np.ones(size, np.float32), sampling_rate=16_000, return_tensors="pt")
    real = inputs["attention_mask"].sum()
    assert ours.config.num_frames(size) == theirs._get_feat_extract_output_lengths(real), size


@pytest.mark.parametrize(("frames", "left", "right"), [(9, 3, 2), (3, 5, 4), (1, 1, 0), (5, 0, 0)])
def test_clipped_shift_is_the_gather(frames, left, right):
  scores = np.random.default_rng(0).normal(size=(2, frames, left + right + 1))
  distance = np.arange(frames)[None, :] - np.arange(frames)[:, None]
  column = np.clip(distance, -left, right) + left
  expected = np.take_along_axis(scores, np.broadcast_to(column, (2, frames, frames)), axis=-1)
  np.testing.assert_allclose(clipped_shift(jnp.asarray(scores), left), expected, rtol=1e-6)


def test_published_size_and_strides():
  config = transformers.Wav2Vec2BertConfig(mask_time_prob=0.0, vocab_size=32, add_adapter=True)
  with torch.device("meta"):
    model = transformers.Wav2Vec2BertForCTC(config)
  adapter = W2vBertAdapterConfig(output_dim=1024)
  ours = W2vBertConfig(
    num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096, vocab_size=32, adapter=adapter
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(ours)))
  assert count == sum(parameter.numel() for parameter in model.parameters())
  assert ours.frame_samples == 640 and ours.num_frames(160_000) == 250
  plain = dataclasses.replace(ours, adapter=None)
  assert plain.frame_samples == 320 and plain.num_frames(160_000) == 499


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(num_layers=0), "num_layers=0"),
    (dict(num_heads=3), "width 16.*num_heads=3"),
    (dict(conv_kernel_size=4), "conv_kernel_size=4"),
    (dict(activation="mish"), "mish"),
    (dict(positions="alibi"), "alibi"),
    (dict(left_positions=-1), "left_positions=-1"),
    (dict(positions="rotary", model_dim=2), "even width"),
  ],
)
def test_shapes_that_cannot_be_are_refused(change, says):
  with pytest.raises(ValueError, match=says):
    W2vBertConfig(**{**dict(num_layers=1, model_dim=16, num_heads=2, ffn_dim=8), **change})


def test_real_recordings(loaded):
  found = recordings(32_000)
  if found is None:
    pytest.skip("no recordings in shared/data")
  audio, lengths = found
  theirs, ours = loaded("adapter")
  out = ours(audio, lengths)
  for row, wave in enumerate(rows(audio, lengths)):
    frames, logits = reference(theirs, wave)
    assert int(out.mask[row].sum()) == len(frames) > 0
    np.testing.assert_allclose(out.frames[row, : len(frames)], frames, atol=1e-4)
    np.testing.assert_allclose(out.ctc_logits[row, : len(frames)], logits, atol=1e-4)
