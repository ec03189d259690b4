"""Where a folder keeps its frontend's settings, and what is said when it does not."""

import json

import pytest
import transformers

from slm_jax.errors import UserError
from slm_jax.interop.speech_encoders.extractor_settings import (
  check_fixed,
  read_extractor_settings,
  require_extractor_settings,
)


def test_both_places_are_read_the_newer_one_first(tmp_path):
  assert read_extractor_settings(tmp_path) is None
  with pytest.raises(UserError, match=r"preprocessor_config\.json .* copy"):
    require_extractor_settings(tmp_path)
  settings = {"feature_extractor_type": "WhisperFeatureExtractor", "hop_length": 80}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
  assert require_extractor_settings(tmp_path) == settings
  for name in ("feature_extractor", "audio_processor"):
    new = {"processor_class": "X", name: {**settings, "hop_length": 160}}
    (tmp_path / "processor_config.json").write_text(json.dumps(new))
    assert require_extractor_settings(tmp_path)["hop_length"] == 160
    # The same file that transformers follows.
    found, _ = transformers.FeatureExtractionMixin.get_feature_extractor_dict(tmp_path)
    assert found == new[name]


def test_a_processor_without_an_extractor_says_nothing(tmp_path):
  (tmp_path / "processor_config.json").write_text('{"processor_class": "X"}')
  assert read_extractor_settings(tmp_path) is None
  (tmp_path / "preprocessor_config.json").write_text('{"hop_length": 80}')
  assert read_extractor_settings(tmp_path) == {"hop_length": 80}
  (tmp_path / "processor_config.json").write_text('{"feature_extractor": [1]}')
  with pytest.raises(UserError, match="feature_extractor is no JSON object"):
    read_extractor_settings(tmp_path)


def test_another_value_is_named():
  check_fixed("folder/x.json", {"hop": 160.0, "other": 1}, {"hop": 160, "dither": 0})
  with pytest.raises(UserError, match=r"folder/x.json: dither is 0.1, this program supports 0$"):
    check_fixed("folder/x.json", {"dither": 0.1}, {"hop": 160, "dither": 0})
