"""Training from the speech encoder's frames of another time: they are found by their audio's hash.

A cache is `<folder>/<key>/`: `facts.json` says what made the frames, `witness.npy` holds the frames of
a fixed sound, `parts` is a `FrameStore`. The key is a hash of the facts, so a cache of another encoder
is another folder; the witness tells when the same weights no longer give the same frames, because the
code has changed.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from slm_jax.errors import UserError
from slm_jax.training.checkpoints import Batches
from slm_jax.training.frame_store import FrameStore, audio_key
from slm_jax.training.frozen_frames import FramesRecipe, FrozenFrames, frame_count
from slm_jax.training.objectives import RetrieverObjective, SLMObjective
from slm_jax.training.recipes import Built

FACTS, WITNESS, PARTS = "facts.json", "witness.npy", "parts"
# Largest difference from the witness, root mean square relative to the frames': bfloat16 on another
# kind of device stays below, a changed window or normalisation does not.
WITNESS_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class FrameCache:
  """A cache opened for one run.

  Attributes:
    folder: of the cache.
    encoder_fingerprint: of the weights that made it.
    store: its frames.
  """

  folder: Path
  encoder_fingerprint: str
  store: FrameStore


def open_frame_cache(folder: str, recipe: FramesRecipe, built: Built, mesh: Mesh) -> FrameCache:
  """Finds the cache of this recipe's frames, and makes sure that they still are what it would hear.

  Reads the encoder's weights, runs it once over a second of sound, and lets it go again. With
  several processes all must call.

  Raises:
    UserError: there is none, or its frames are not those that the code makes now.
  """
  frames = FrozenFrames(recipe, built, mesh)
  place = Path(folder) / frames.key
  if not (place / FACTS).is_file():
    raise UserError(f"train.frame_cache={folder}: {_why_absent(Path(folder), frames)}")
  check_witness(place, frames.witness())
  store = FrameStore(place / PARTS, width=frames.width, dtype=frames.dtype)
  return FrameCache(place, frames.encoder_fingerprint, store)


def create(folder: str, frames: FrozenFrames) -> Path:
  """The cache's folder `<folder>/<key>`, begun if it is not there yet.

  Raises:
    UserError: it is there, and its frames are not those that the code makes now.
  """
  place, witness = Path(folder) / frames.key, frames.witness()
  if (place / FACTS).is_file():
    check_witness(place, witness)
    return place
  place.mkdir(parents=True, exist_ok=True)
  for name, write in (
    (WITNESS, lambda file: np.save(file, witness)),
    (FACTS, lambda file: file.write(json.dumps(frames.facts, indent=2).encode() + b"\n")),
  ):
    temporary = place / f".{name}.{os.getpid()}"
    with open(temporary, "wb") as file:
      write(file)
    os.replace(temporary, place / name)
  return place


def check_witness(place: Path, now: np.ndarray) -> None:
  """Raises UserError if the frames of the fixed sound have changed since the cache was begun."""
  then = np.load(place / WITNESS, allow_pickle=False)
  scale = float(np.sqrt(np.mean(np.square(then)))) or 1.0
  same = then.shape == now.shape
  difference = float(np.sqrt(np.mean(np.square(then - now)))) / scale if same else float("inf")
  if not difference <= WITNESS_TOLERANCE:
    raise UserError(
      f"frame cache {place}: its frames of a test sound differ by {difference:.1%} from those that this "
      "version makes of it; delete the folder and run slm_jax cache again"
    )


class CachedFrameBatches:
  """Batches with frames from a cache in place of the audio; otherwise those that it is given."""

  def __init__(self, batches: Batches, cache: FrameCache, built: Built):
    assert isinstance(built.objective, SLMObjective | RetrieverObjective)
    self._batches, self._cache, self._model = batches, cache, built.objective.model

  def __next__(self) -> dict[str, Any]:
    """Batch's field name → array.

    Raises:
      UserError: the cache lacks an utterance.
    """
    arrays = dict(next(self._batches))
    audio, lengths = arrays.pop("audio"), arrays["audio_lengths"]
    heard = np.flatnonzero(lengths)  # the others are rows of padding
    keys = [audio_key(audio[i][: lengths[i]]) for i in heard]
    try:
      rows = self._cache.store.read(keys)
    except KeyError as error:
      raise UserError(self._missing(keys.index(error.args[0]))) from error
    size = frame_count(self._model, audio.shape[1])
    frames = np.zeros((len(audio), size, rows[0].shape[1]), rows[0].dtype)
    counts = np.zeros(len(audio), np.int32)
    for i, row in zip(heard, rows, strict=True):
      counts[i] = min(len(row), size)
      frames[i, : counts[i]] = row[:size]
    return arrays | {"speech_frames": frames, "speech_frame_lengths": counts}

  def _missing(self, row: int) -> str:
    ids = self.example_ids
    name = f"example {ids[row]}" if row < len(ids) else f"row {row} of a batch"
    return (
      f"frame cache {self._cache.folder}: no frames of {name}; run slm_jax cache again for data that "
      "have changed, or train without train.frame_cache if the audio is altered at random"
    )

  def save(self, directory: str) -> None:
    """As of the batches."""
    self._batches.save(directory)

  def restore(self, directory: str) -> None:
    """As of the batches."""
    self._batches.restore(directory)

  @property
  def skipped(self) -> dict[str, int]:
    """As of the batches."""
    return self._batches.skipped

  @property
  def example_ids(self) -> list[str]:
    """As of the batches."""
    return self._batches.example_ids

  @property
  def facts(self) -> dict[str, Any]:
    """Those of the batches, and the cache's key."""
    return self._batches.facts | {"frame cache": self._cache.folder.name}


def without_encoder(built: Built) -> Built:
  """The recipe for batches that bring the frames along: the speech encoder's weights are not read."""
  loaded = {part: tree for part, tree in built.loaded.items() if part != "speech_encoder"}
  return dataclasses.replace(built, loaded=loaded)


def _why_absent(folder: Path, frames: FrozenFrames) -> str:
  """The first difference to a cache that is there, if one is."""
  for path in sorted(folder.glob(f"*/{FACTS}")):
    facts = json.loads(path.read_text())
    for name, value in frames.facts.items():
      if facts.get(name) != value:
        what = _difference(facts.get(name), value)
        return (
          f"no frames of this run's speech encoder; those in {path.parent.name} have another {name}{what}; "
          "run slm_jax cache with this run's gin file"
        )
  return "holds no frames yet; run slm_jax cache with this run's gin file"


def _difference(there: Any, here: Any) -> str:
  if isinstance(there, dict) and isinstance(here, dict):
    names = [n for n in here if there.get(n) != here[n]]
    return ": " + ", ".join(f"{n}={there.get(n)!r}, not {here[n]!r}" for n in names[:3])
  return ""
