"""Several bundles over one pair of bases, which is loaded once."""

import dataclasses
from pathlib import Path

from slm_jax.bundle.loading import Bundle, load, trained_parameters
from slm_jax.bundle.manifest import Manifest, read_manifest
from slm_jax.bundle.merged import is_merged
from slm_jax.errors import UserError
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.serving.adapter_slots import AdapterSlots

# In what bundles of one server must agree; the rest is each one's own.
_SHARED = ("adapter", "speech_first", "speech_encoder_dtype", "language_model_dtype", "trainable")


@dataclasses.dataclass(frozen=True)
class LoadedBundles:
  """Attributes: `model`, with the first bundle's adapter; `adapters`, all of them; `manifests` by name."""

  model: SpeechLanguageModel
  adapters: AdapterSlots
  manifests: dict[str, Manifest]


def load_bundles(
  folders: dict[str, str | Path],
  *,
  speech_encoder: str | None = None,
  language_model: str | None = None,
  frozen_dtype: str | None = None,
  num_slots: int | None = None,
) -> LoadedBundles:
  """Loads bundles by name.

  Args:
    folders: name → folder that `slm_jax export` wrote.
    speech_encoder, language_model, frozen_dtype: as of `bundle.load`.
    num_slots: room for so many adapters; None is as many as there are bundles.

  Raises:
    UserError: as of `bundle.load`; or bundles of other bases or another shape than the first.
  """
  for folder in folders.values():
    if is_merged(Path(folder)):
      raise UserError(f"{folder} is a merged folder, of which nothing is shared; serve a bundle")
  manifests = {name: read_manifest(Path(folder)) for name, folder in folders.items()}
  first_name, first = next(iter(manifests.items()))
  for name, manifest in manifests.items():
    if manifest.trainable != "adapter/.*":
      raise UserError(
        f"{folders[name]} holds more than an adapter: trainable={manifest.trainable!r}; serve it by itself "
        "with slm_jax.bundle.load"
      )
    _check_alike(first_name, first, name, manifest)
  loaded: Bundle = load(
    folders[first_name],
    speech_encoder=speech_encoder,
    language_model=language_model,
    frozen_dtype=frozen_dtype,
  )
  trained = {name: trained_parameters(Path(folder))["adapter"] for name, folder in folders.items()}
  return LoadedBundles(loaded.model, AdapterSlots(trained, num_slots=num_slots), manifests)


def _check_alike(first_name: str, first: Manifest, name: str, manifest: Manifest) -> None:
  for part in ("speech_encoder", "language_model"):
    ours, theirs = (getattr(m, part).fingerprint for m in (manifest, first))
    if ours != theirs:
      raise UserError(
        f"bundles {name!r} and {first_name!r} were trained over another {part}: fingerprints {ours[:16]} and "
        f"{theirs[:16]}; serve them in two processes"
      )
  for field in _SHARED:
    if getattr(manifest, field) != getattr(first, field):
      raise UserError(
        f"bundles {name!r} and {first_name!r} differ in {field}: {getattr(manifest, field)} and "
        f"{getattr(first, field)}; serve them in two processes"
      )
