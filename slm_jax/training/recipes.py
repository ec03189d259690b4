"""What can be trained: the adapter between two frozen models, a retriever beside it, or one of the two on its own.

A recipe is the gin-facing description; `build` reads weights and returns the objective with its starting parameters.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from slm_jax import interop
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.errors import UserError
from slm_jax.models.adapter import AdapterConfig, scale_output_norm
from slm_jax.models.best_rq import BestRQ, BestRQConfig
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.length_reduction import CTC_KINDS
from slm_jax.models.retriever import RetrieverConfig, SpeechRetriever, SpeechRetrieverConfig
from slm_jax.models.slm import SLM, SLMConfig
from slm_jax.models.speech_encoders.usm import USMEncoder
from slm_jax.models.t5 import T5, T5Config
from slm_jax.models.t5_config import COMPUTE_TYPES, REMAT_POLICIES
from slm_jax.training.character_targets import character_table
from slm_jax.training.objectives import (
  BestRQObjective,
  LanguageModelObjective,
  Objective,
  RetrieverObjective,
  SLMObjective,
  SpeechEncoderObjective,
)

PACKAGE_PREFIX = "slm_jax:"


def resolve_path(path: str) -> Path:
  """`slm_jax:mini/…` names a file or folder shipped with the package; anything else is a path as it stands."""
  if path.startswith(PACKAGE_PREFIX):
    return Path(__file__).parent.parent / "assets" / path.removeprefix(PACKAGE_PREFIX)
  return Path(path)


def _base_path(path: str) -> Path | str:
  """As `resolve_path`; the address of a bucket, gs://…, stays a string."""
  return path if "://" in path else resolve_path(path)


@dataclasses.dataclass(frozen=True)
class Built:
  """A recipe with its weights read."""

  objective: Objective
  trainable: str
  # Nested {speech_encoder: …, language_model: …} of arrays, or of StoredParameters that still lie in
  # files; absent parts start fresh.
  loaded: dict
  # Last touch to freshly initialised trained parameters, given the loaded ones as arrays.
  finish: Callable[[dict, dict], dict]
  tokenizer: Any
  # Pieces of the speech encoder's CTC head, where there is one.
  ctc_tokenizer: Any = None
  # Longest audio that the speech encoder takes; None is any.
  max_samples: int | None = None


def _unchanged(fresh: dict, loaded: dict) -> dict:
  return fresh


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
  """SLM: the adapter is trained, both bases are frozen.

  A base is a folder, or the shape of one: without weights nothing can be trained, but `slm_jax
  preflight` needs no more.
  """

  speech_encoder: str | ConformerConfig
  language_model: str | T5Config
  adapter: AdapterConfig
  speech_first: bool = True
  # Regular expression over parameter paths; what it does not match is frozen.
  trainable: str = "adapter/.*"
  # Low-rank updates of the LM (`T5Config.lora_rank`), which `trainable` has to match: gin/models/lora.gin.
  lora_rank: int = 0
  # Storage type of the frozen weights: float32 is fastest on CPU, bfloat16 halves memory on TPU and GPU,
  # int8 halves it again (`slm_jax.models.quantization`).
  frozen_dtype: str = "float32"
  # Another one for the speech encoder; None is `frozen_dtype`.
  frozen_speech_encoder_dtype: str | None = None
  # Types of computation, and what the LM's backward pass computes again, as of `T5Config`.
  speech_encoder_dtype: str = "float32"
  language_model_dtype: str = "float32"
  language_model_remat: str = "none"
  # Target positions whose logits exist at a time, 0 for all: less memory with a large vocabulary.
  loss_chunk: int = 0
  # Masks stretches of the spectrograms that the frozen encoder hears in training; None leaves them whole.
  spec_augment: SpecAugmentConfig | None = None

  def __post_init__(self):
    for name in ("speech_encoder_dtype", "language_model_dtype"):
      _check_one_of(name, getattr(self, name), COMPUTE_TYPES)
    _check_one_of("language_model_remat", self.language_model_remat, REMAT_POLICIES)
    _check_chunk(self.loss_chunk)

  def speech_positions(self) -> Callable[[int, int], int]:
    """(samples, samples of the batch's longest) -> positions of the LM's encoder that this much speech
    takes at most. Reads no weights."""
    encoder, reduction = self._encoder().config, self.adapter.length_reduction

    def most(samples: int, longest: int) -> int:
      frames = encoder.num_frames(samples)
      if reduction.kind in CTC_KINDS:  # may keep all, as far as there is room
        return min(frames, reduction.output_length(encoder.num_frames(longest)))
      return reduction.output_length(frames)

    return most

  def _encoder(self) -> Any:
    return _open_encoder(self.speech_encoder, self.frozen_speech_encoder_dtype or self.frozen_dtype)

  def build(self) -> Built:
    encoder, lm = self._encoder(), _open_language_model(self)
    if self.adapter.ctc_embeddings:
      _check_same_pieces(encoder, lm, self)
    # Frozen models do not drop out, and hear masked spectrograms only where the run asks for it.
    config = SLMConfig(
      speech_encoder=_heard_encoder(encoder.config, self),
      adapter=self.adapter,
      language_model=dataclasses.replace(
        lm.config,
        dropout_rate=0.0,
        dtype=self.language_model_dtype,
        remat=self.language_model_remat,
        lora_rank=self.lora_rank,
      ),
      speech_first=self.speech_first,
    )

    def finish(fresh: dict, loaded: dict) -> dict:
      embedding = loaded["language_model"]["token_embedder"]["embedding"]
      return {**fresh, "adapter": scale_output_norm(fresh["adapter"], embedding)}

    loaded = {"speech_encoder": encoder.params, "language_model": lm.params}
    loaded = {part: params for part, params in loaded.items() if params}
    return Built(
      SLMObjective(SLM(config), self.loss_chunk),
      self.trainable,
      loaded,
      finish,
      lm.tokenizer,
      encoder.tokenizer,
      encoder.config.max_samples,
    )


class _Shape(NamedTuple):
  """A base without weights; looks like an opened one."""

  config: Any
  params: dict = {}
  tokenizer: Any = None


def _heard_encoder(config: Any, recipe: "AdapterRecipe | RetrieverRecipe") -> Any:
  changes: dict[str, Any] = {"dtype": recipe.speech_encoder_dtype}
  if recipe.spec_augment is not None:
    if not isinstance(config, ConformerConfig):
      raise UserError(
        f"{type(recipe).__name__}.spec_augment: {recipe.speech_encoder} has a frontend of its own, whose "
        "spectrograms are not masked; set it to None"
      )
    changes["spec_augment"] = recipe.spec_augment
  return dataclasses.replace(config.frozen(), **changes)


def _open_encoder(base: str | ConformerConfig, dtype: str) -> Any:
  if isinstance(base, str):
    return interop.open_speech_encoder(resolve_path(base), dtype=dtype)
  return _Shape(dataclasses.replace(base, weights="int8") if dtype == "int8" else base)


def _open_language_model(recipe: AdapterRecipe) -> Any:
  base, dtype = recipe.language_model, recipe.frozen_dtype
  if isinstance(base, str):
    return interop.open_language_model(_base_path(base), dtype=dtype)
  return _Shape(dataclasses.replace(base, weights="int8") if dtype == "int8" else base)


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise ValueError(f"{name}={value!r}: expected one of {known}")


def _check_chunk(loss_chunk: int) -> None:
  if loss_chunk < 0:
    raise ValueError(f"loss_chunk={loss_chunk}: expected 0, for all positions at once, or more")


def _check_same_pieces(encoder, lm, recipe: AdapterRecipe) -> None:
  """Raises UserError unless the encoder's CTC classes are the LM's tokens."""
  ours, theirs = (
    None if model.tokenizer is None else model.tokenizer.serialized_model_proto()
    for model in (encoder, lm)
  )
  if not encoder.config.vocab_size or ours is None or ours != theirs:
    raise UserError(
      f"AdapterConfig.ctc_embeddings=True needs a CTC head over the LM's own pieces, and {recipe.speech_encoder} "
      f"and {recipe.language_model} do not share a spiece.model; set it to False"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverRecipe:
  """Finds the entities of a list that an utterance names; the speech encoder is frozen.

  Targets are the utterance's entities as bytes (see `slm_jax.entities`). Its negatives are the entities
  of the other utterances that the step sees at once: with microbatches those of a microbatch.
  """

  speech_encoder: str | ConformerConfig
  retriever: RetrieverConfig
  trainable: str = "retriever/.*"
  # As of `AdapterRecipe`.
  frozen_dtype: str = "float32"
  speech_encoder_dtype: str = "float32"
  spec_augment: SpecAugmentConfig | None = None

  def __post_init__(self):
    _check_one_of("speech_encoder_dtype", self.speech_encoder_dtype, COMPUTE_TYPES)

  def build(self) -> Built:
    encoder = _open_encoder(self.speech_encoder, self.frozen_dtype)
    reduction = self.retriever.towers.length_reduction
    if reduction.kind in CTC_KINDS and not encoder.config.vocab_size:
      raise UserError(
        f"LengthReductionConfig.kind={reduction.kind!r} needs a CTC head, which {self.speech_encoder} has not"
      )
    config = SpeechRetrieverConfig(
      speech_encoder=_heard_encoder(encoder.config, self), retriever=self.retriever
    )
    return Built(
      RetrieverObjective(SpeechRetriever(config)),
      self.trainable,
      {"speech_encoder": encoder.params} if encoder.params else {},
      _unchanged,
      None,
      encoder.tokenizer,
      encoder.config.max_samples,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechEncoderRecipe:
  """A CTC speech encoder, trained whole, from scratch or from a pre-trained one."""

  config: ConformerConfig
  tokenizer: str
  # Folder of an encoder of the same shape, such as one that `BestRQRecipe` made; heads it lacks
  # start fresh.
  pretrained: str | None = None
  # Trains the middle layer on characters besides; that head is not part of the finished model.
  intermediate_characters: bool = False

  def build(self) -> Built:
    tokenizer = _tokenizer(self.tokenizer, self.config.vocab_size)
    config, table = self.config, None
    if self.intermediate_characters:
      table, size = character_table(tokenizer)
      config = dataclasses.replace(config, intermediate_vocab_size=size)
    objective = SpeechEncoderObjective(USMEncoder(config), table)
    loaded = {}
    if self.pretrained is not None:
      loaded = {"speech_encoder": interop.open_speech_encoder(resolve_path(self.pretrained)).params}
    return Built(objective, "speech_encoder/.*", loaded, _unchanged, tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRQRecipe:
  """A speech encoder pre-trained on audio alone; it has no CTC head yet."""

  config: ConformerConfig
  quantizer: BestRQConfig

  def __post_init__(self):
    if self.config.vocab_size or self.config.intermediate_vocab_size:
      raise ValueError(
        f"ConformerConfig.vocab_size={self.config.vocab_size}: BEST-RQ trains no CTC head, set it to 0"
      )

  def build(self) -> Built:
    objective = BestRQObjective(BestRQ(self.config, self.quantizer))
    return Built(objective, "(speech_encoder|best_rq)/.*", {}, _unchanged, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelRecipe:
  """A T5-family LM, trained whole, from scratch or from a trained one."""

  config: T5Config
  tokenizer: str
  # Folder or T5X checkpoint of an LM of the same shape to start from.
  pretrained: str | None = None
  z_loss: float = 1e-4
  # As of `AdapterRecipe`.
  loss_chunk: int = 0

  def __post_init__(self):
    _check_chunk(self.loss_chunk)

  def build(self) -> Built:
    tokenizer = _tokenizer(self.tokenizer, self.config.vocab_size)
    objective = LanguageModelObjective(T5(self.config), self.z_loss, self.loss_chunk)
    loaded = {}
    if self.pretrained is not None:
      loaded = {"language_model": interop.open_language_model(_base_path(self.pretrained)).params}
    return Built(objective, "language_model/.*", loaded, _unchanged, tokenizer)


def _tokenizer(path: str, vocab_size: int):
  import sentencepiece

  resolved = resolve_path(path)
  if not resolved.is_file():
    raise UserError(
      f"tokenizer {resolved} does not exist; expected a SentencePiece model (spiece.model)"
    )
  tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(resolved))
  if tokenizer.vocab_size() > vocab_size:
    raise UserError(
      f"tokenizer {resolved} has {tokenizer.vocab_size()} pieces, the model's vocab_size is {vocab_size}; "
      "raise vocab_size"
    )
  return tokenizer
