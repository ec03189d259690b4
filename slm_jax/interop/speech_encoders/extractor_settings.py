"""The settings of a published frontend: numbers that no weight file tells."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_jax.errors import UserError
from slm_jax.interop.safetensors_folder import read_json_object

EXTRACTOR_FILE = "preprocessor_config.json"
# Newer folders keep the extractor's settings here, under "feature_extractor".
PROCESSOR_FILE = "processor_config.json"


def read_extractor_settings(folder: Path | str) -> dict[str, Any] | None:
  """What a Hugging Face folder says of its feature extractor; None where it says nothing.

  `preprocessor_config.json` comes first, then "feature_extractor" of `processor_config.json`.

  Raises:
    UserError: a file is damaged.
  """
  folder = Path(folder)
  if (folder / EXTRACTOR_FILE).is_file():
    return read_json_object(folder / EXTRACTOR_FILE)
  if (folder / PROCESSOR_FILE).is_file():
    settings = read_json_object(folder / PROCESSOR_FILE).get("feature_extractor")
    if settings is not None and not isinstance(settings, dict):
      raise UserError(f"{folder / PROCESSOR_FILE}: feature_extractor is no JSON object")
    return settings
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
