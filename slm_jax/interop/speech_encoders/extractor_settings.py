"""The settings of a published frontend: numbers that no weight file tells."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import read_json_object

EXTRACTOR_FILE = "preprocessor_config.json"
# Newer folders keep the extractor's settings here, under one of these names.
PROCESSOR_FILE = "processor_config.json"
_NESTED = ("feature_extractor", "audio_processor")


def read_extractor_settings(folder: Path | str) -> dict[str, Any] | None:
  """What a Hugging Face folder says of its feature extractor; None where it says nothing.

  As in transformers, what `processor_config.json` says of the extractor comes first, then
  `preprocessor_config.json`, which in a multimodal folder may describe images alone.

  Raises:
    UserError: a file is damaged.
  """
  folder = Path(folder)
  if (folder / PROCESSOR_FILE).is_file():
    processor = read_json_object(folder / PROCESSOR_FILE)
    for name in _NESTED:
      if (settings := processor.get(name)) is None:
        continue
      if not isinstance(settings, dict):
        raise UserError(f"{folder / PROCESSOR_FILE}: {name} is no JSON object")
      return settings
  if (folder / EXTRACTOR_FILE).is_file():
    return read_json_object(folder / EXTRACTOR_FILE)
  return None


def require_extractor_settings(folder: Path | str) -> dict[str, Any]:
  """As `read_extractor_settings`, for families whose released models differ in their settings.

  Raises:
    UserError: besides, where the folder says nothing: names the file to copy.
  """
  settings = read_extractor_settings(folder)
  if settings is None:
    raise UserError(
      f"{folder} has neither {EXTRACTOR_FILE} nor {PROCESSOR_FILE} with a feature_extractor; copy the "
      "one that was published with the weights"
    )
  return settings


def check_fixed(where: Path | str, found: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
  """Raises UserError for a setting in `found` that has another value than the supported one.

  Settings that are absent are as supported; `where` is the file or folder named in the message.
  """
  for name, value in supported.items():
    if name in found and found[name] != value:
      raise UserError(
        f"{where}: {name} is {json.dumps(found[name])[:60]}, this program supports {json.dumps(value)}"
      )
