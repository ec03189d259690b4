"""A bundle over its bases, ready to answer."""

import dataclasses
import math
import re
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from slm_jax.audio.files import SAMPLE_RATE, convert_samples, read_audio
from slm_jax.bundle.manifest import WEIGHTS, Base, Manifest, read_manifest
from slm_jax.bundle.merged import is_merged, load_merged
from slm_jax.errors import UserError
from slm_jax.evaluation.generation import (
  GenerationSettings,
  Hypothesis,
  audio_batch,
  decode_ids,
  hypothesise,
  pad_rows,
  padded_length,
  prompt_ids,
)
from slm_jax.interop.placement import place_all
from slm_jax.interop.safetensors_file import SafetensorsFile
from slm_jax.interop.stored_parameter import StoredParameter
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.training import parameters
from slm_jax.training.checkpoints import check_fingerprints
from slm_jax.training.recipes import AdapterRecipe, resolve_path
from slm_jax.training.restore import assemble

# Of a tensor: the parameter's path, joined with dots.
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

# A file, samples at 16 kHz (int16, or float in [-1, 1]), or samples and their rate.
Audio = str | Path | np.ndarray | tuple[np.ndarray, int]


def load(
  path: str | Path,
  *,
  speech_encoder: str | None = None,
  language_model: str | None = None,
  frozen_dtype: str | None = None,
  mesh: Mesh | None = None,
) -> "Bundle":
  """Reads a bundle and puts it between its bases, or a merged folder, which brings them along.

  Args:
    path: folder that `slm_jax export` wrote, as a bundle or with --format=merged.
    speech_encoder, language_model: folders of the bases; None is where they were in training.
    frozen_dtype: storage type of the bases, other than in training ("bfloat16", "int8"); the
      fingerprint is still taken in the type of training.
    mesh: over which the model is spread; None is the default device.

  Raises:
    UserError: no bundle, one that is damaged, other bases than it was trained over (with both
      fingerprints), or weights that are not those of its config.
  """
  folder = Path(path)
  if is_merged(folder):
    if speech_encoder or language_model or frozen_dtype:
      raise UserError(f"{folder} holds its bases, as they are; leave out folders and frozen_dtype")
    model, instructions = load_merged(folder, mesh=mesh)
    return Bundle(model, instructions)
  manifest = read_manifest(folder)
  paths = {
    "speech_encoder": _found(speech_encoder, manifest.speech_encoder, "speech_encoder"),
    "language_model": _found(language_model, manifest.language_model, "language_model"),
  }
  bases = {part: getattr(manifest, part).fingerprint for part in paths}
  trained = trained_parameters(folder)
  as_trained = manifest.recipe(**paths)
  recipe = manifest.recipe(**paths, frozen_dtype=frozen_dtype)
  if recipe != as_trained:
    _check_bases(folder, as_trained, bases)
    bases = None
  model = assemble(
    recipe,
    trained,
    what=str(folder),
    fingerprints=bases,
    max_samples=manifest.max_samples,
    mesh=mesh,
  )
  return Bundle(model, manifest.instructions, manifest)


class Answer(str):
  """The text of an answer about one recording, and how sure the model was of it.

  Attributes:
    text: the same as a plain string.
    scores: log-probability over length, of each piece that the recording was cut into.
  """

  text: str
  scores: tuple[float, ...]

  @classmethod
  def of(cls, found: Hypothesis) -> "Answer":
    """From what the model made of a recording."""
    answer = cls(found.text)
    answer.text, answer.scores = found.text, tuple(chunk.score for chunk in found.chunks)
    return answer


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A loaded bundle.

  Attributes:
    model: the whole model.
    instructions: by name, as of `Manifest`.
    manifest: what it says of itself; None of a merged folder.
  """

  model: SpeechLanguageModel
  instructions: dict[str, str]
  manifest: Manifest | None = None

  def generate(
    self,
    audio: Audio | Sequence[Audio],
    instruction: str | None = None,
    *,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    batch_size: int = 8,
  ) -> Answer | list[Answer]:
    """Answers an instruction about one recording, or about each of several.

    Args:
      audio: one recording or a list; longer than `max_samples` is cut at pauses.
      instruction: None is the bundle's own.
      max_new_tokens: longest answer to a piece, in tokens.
      num_beams: 1 is greedy.
      batch_size: pieces at a time; calls of one batch size and length of instruction share a
        compiled program.

    Returns:
      The answer, a string with its scores; of a list a list, in order.

    Raises:
      UserError: audio that cannot be read or has no samples, or no instruction.
    """
    several = isinstance(audio, list)
    recordings = audio if isinstance(audio, list) else [audio]
    text = instruction if instruction is not None else self._instruction("default")
    settings = GenerationSettings(
      batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams
    )
    length = padded_length([len(prompt_ids(self.model.tokenizer, text))])
    requests = ((_samples(one), text) for one in recordings)  # pyright: ignore[reportArgumentType]
    found = hypothesise(self.model, requests, settings, prompt_length=length)
    answers = [Answer.of(one) for one in found]
    return answers if several else answers[0]

  def n_best(
    self,
    audio: Audio | list[Audio],
    instruction: str | None = None,
    *,
    n: int,
    num_beams: int | None = None,
    max_new_tokens: int = 64,
  ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
    """The best answers about one recording, or about each of several, and their scores, best first.

    Args:
      audio: as of `generate`, but no longer than a call takes.
      instruction, max_new_tokens: as of `generate`.
      n: how many.
      num_beams: at least n, which is the default.

    Raises:
      UserError: as of `generate`, audio that is too long, or n or num_beams that make no sense.
    """
    if n < 1 or (num_beams or n) < n:
      raise UserError(
        f"n={n}, num_beams={num_beams}: expected 1 or more, and no fewer beams than n"
      )
    if isinstance(audio, list):
      options = {"n": n, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
      return [self.n_best(one, instruction, **options) for one in audio]  # pyright: ignore
    samples = _samples(audio)
    if len(samples) > self.model.max_samples:
      raise UserError(
        f"the audio has {len(samples)} samples, n_best takes {self.model.max_samples}; cut it"
      )
    text = instruction if instruction is not None else self._instruction("default")
    prompt = prompt_ids(self.model.tokenizer, text)
    padded, lengths = audio_batch([samples], self.model.max_samples)
    found = self.model.generate(
      padded,
      lengths,
      pad_rows([prompt], padded_length([len(prompt)])),
      max_new_tokens=max_new_tokens,
      num_beams=num_beams or n,
      num_return_sequences=n,
    )
    ids, scores = (np.asarray(x).reshape(n, -1) for x in found)
    texts = [decode_ids(self.model.tokenizer, row) for row in ids]
    return list(zip(texts, scores[:, 0].tolist(), strict=True))

  def transcribe(self, audio: Audio | Sequence[Audio], **options) -> Answer | list[Answer]:
    """What was said; arguments as of `generate`."""
    return self.generate(audio, self._instruction("transcribe"), **options)

  def translate(
    self, audio: Audio | Sequence[Audio], *, target: str, **options
  ) -> Answer | list[Answer]:
    """What was said, in the language `target` (as the bundle's instruction names it: "German")."""
    instruction = self._instruction("translate").replace("{target}", target)
    return self.generate(audio, instruction, **options)

  def _instruction(self, name: str) -> str:
    if name not in self.instructions:
      raise UserError(
        f"the bundle has no instruction {name!r}, only {sorted(self.instructions)}; say what to do with "
        "generate(audio, instruction)"
      )
    return self.instructions[name]


def _found(given: str | None, base: Base, part: str) -> str:
  name = given or base.name
  if "://" not in name and not resolve_path(name).exists():
    raise UserError(
      f"the bundle's {part}: {name} does not exist; give {part}=FOLDER, a folder of the weights whose fingerprint is "
      f"{base.fingerprint[:16]}"
    )
  return name


def trained_parameters(folder: Path) -> dict:
  """Nested, as host arrays, of a bundle whose files are whole.

  Raises:
    UserError: names that are no parameters', or weights that are not finite numbers in fp32.
  """
  path = folder / WEIGHTS
  flat: dict[str, np.ndarray] = {}
  for name, tensor in SafetensorsFile(path).tensors.items():
    if not _NAME.fullmatch(name):
      raise UserError(f"{path} has a tensor {name[:200]!r}, which is no parameter's name")
    if tensor.dtype != "float32":
      raise UserError(f"{path}: {name[:200]} is {tensor.dtype}, expected one of ['float32']")
    stored = StoredParameter(shape=tensor.shape, dtype=np.dtype(np.float32), tensors=(tensor,))
    flat[name.replace(".", "/")] = np.asarray(stored)
  for name in flat:
    above = name
    while above := above.rpartition("/")[0]:
      if above in flat:
        raise UserError(f"{path} has {name}, and {above} as a tensor too")
  return parameters.unflatten(flat)


def _check_bases(folder: Path, recipe: AdapterRecipe, expected: dict[str, str]) -> None:
  """Raises UserError unless the bases, in the type of training, are those of training."""
  loaded = recipe.build().loaded
  found = {}
  for part in loaded:
    placed = place_all(parameters.flatten({part: loaded[part]}), None)
    found[part] = parameters.fingerprint(parameters.unflatten(placed))
    del placed
  check_fingerprints(str(folder), expected, found)


def _samples(audio: Audio) -> np.ndarray:
  """int16 [S] at 16 kHz."""
  if isinstance(audio, str | Path):
    return read_audio(str(audio))
  pair = audio if isinstance(audio, tuple) else (audio, SAMPLE_RATE)
  samples = np.asarray(pair[0]) if len(pair) == 2 else np.empty(0, object)
  if samples.dtype.kind not in "iuf" or not isinstance(pair[1], Real):
    raise UserError(
      f"audio is {str(audio)[:80]!r}; expected a file's path, an array of samples at 16 kHz, or (samples, rate)"
    )
  rate = int(pair[1]) if math.isfinite(pair[1]) else 0
  return convert_samples(samples, rate, "audio")
