"""What a bundle says of itself: its config.json.

A bundle is a folder: `adapter.safetensors` (everything that was trained, fp32), `config.json` (this
manifest), `README.md` (its card) and `SHA256SUMS` over the three, as `sha256sum --check` reads it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from slm_jax.bundle.checksums import check_sums
from slm_jax.errors import UserError
from slm_jax.interop.config_record import config_from_record
from slm_jax.models.adapter import AdapterConfig
from slm_jax.training.recipes import AdapterRecipe

FORMAT, FORMAT_VERSION = "slm_jax.bundle", 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
_MAX_JSON_BYTES = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
  """A frozen model that the adapter was trained over.

  Attributes:
    name: where it was found: a folder, or `slm_jax:…` for one that comes with the package.
    fingerprint: of its weights in the type `dtype`, as of `parameters.fingerprint`.
    dtype: type in which it was stored in training.
  """

  name: str
  fingerprint: str
  dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """Everything but the weights.

  Attributes:
    adapter: its shape.
    speech_encoder, language_model: the bases.
    speech_first, speech_encoder_dtype, language_model_dtype, trainable, lora_rank: as of `AdapterRecipe`.
    max_samples: longest audio of one call, at 16 kHz.
    instructions: "default", and by name what `transcribe` and `translate` ask for; `{target}`
      stands for the language.
    step: of the checkpoint.
    slm_jax: version that wrote it.
    format, format_version: of the bundle.
  """

  adapter: AdapterConfig
  speech_encoder: Base
  language_model: Base
  max_samples: int
  step: int
  slm_jax: str
  instructions: dict[str, str] = dataclasses.field(default_factory=dict)
  speech_first: bool = True
  speech_encoder_dtype: str = "float32"
  language_model_dtype: str = "float32"
  trainable: str = "adapter/.*"
  lora_rank: int = 0
  format: str = FORMAT
  format_version: int = FORMAT_VERSION

  def __post_init__(self):
    if self.format != FORMAT:
      raise ValueError(f"format is {self.format!r}, expected {FORMAT!r}")
    if self.format_version != FORMAT_VERSION:
      raise ValueError(
        f"format_version is {self.format_version}, this version of slm_jax reads {FORMAT_VERSION}"
      )
    texts = self.instructions.values() if isinstance(self.instructions, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
      raise ValueError(f"instructions are {self.instructions!r:.100}, expected texts by name")
    if self.max_samples < 1:
      raise ValueError(f"max_samples is {self.max_samples}, expected at least 1")

  def recipe(
    self, speech_encoder: str, language_model: str, *, frozen_dtype: str | None = None
  ) -> AdapterRecipe:
    """The model over bases in these folders, stored as in training or as `frozen_dtype`."""
    return AdapterRecipe(
      speech_encoder=speech_encoder,
      language_model=language_model,
      adapter=self.adapter,
      speech_first=self.speech_first,
      trainable=self.trainable,
      lora_rank=self.lora_rank,
      frozen_dtype=frozen_dtype or self.language_model.dtype,
      frozen_speech_encoder_dtype=frozen_dtype or self.speech_encoder.dtype,
      speech_encoder_dtype=self.speech_encoder_dtype,
      language_model_dtype=self.language_model_dtype,
    )


def read_manifest(folder: Path) -> Manifest:
  """The manifest of a bundle whose files are whole.

  Raises:
    UserError: no bundle, a file is missing, damaged or of a later version; the message names it.
  """
  check_sums(folder, FILES)
  record = _json_object(folder / CONFIG)
  try:
    return config_from_record(Manifest, record)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{folder / CONFIG} does not describe a bundle: {error}") from error


def manifest_json(manifest: Manifest) -> str:
  """The text of config.json."""
  return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def _json_object(path: Path) -> dict[str, Any]:
  try:
    if path.stat().st_size > _MAX_JSON_BYTES:
      raise ValueError(f"it is larger than {_MAX_JSON_BYTES} bytes")
    record = json.loads(path.read_text("utf-8"))
    if not isinstance(record, dict):
      raise ValueError(f"it holds a JSON {type(record).__name__}, expected an object")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  return record
