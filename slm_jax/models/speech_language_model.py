"""A trained SLM ready to answer: what `eval` and `infer` run."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from slm_jax.models.ctc import greedy_decode
from slm_jax.models.decoding import GenerationConfig, GenerationResult, generate
from slm_jax.models.language_model import LanguageModel
from slm_jax.models.row_placement import RowPlacement
from slm_jax.models.slm import SLM
from slm_jax.models.speech_encoders.families import make_speech_encoder
from slm_jax.models.t5 import T5


@dataclasses.dataclass(frozen=True)
class SpeechLanguageModel:
  """SLM with its weights.

  Attributes:
    model: the Flax module.
    params: nested {speech_encoder, adapter, language_model}.
    tokenizer: the LM's SentencePiece processor.
    ctc_tokenizer: the speech encoder's SentencePiece processor, for CTC transcripts.
    max_samples: samples at 16 kHz that one call takes; longer audio goes in chunks.
    mesh: over which `params` lie and batches are spread, by whatever number of processes, each of
      which makes the same calls and gets whole results; None is the default device.
  """

  model: SLM
  params: dict
  tokenizer: Any
  ctc_tokenizer: Any
  max_samples: int
  mesh: Mesh | None = None

  @functools.cached_property
  def _rows(self) -> RowPlacement:
    return RowPlacement(self.mesh)

  @functools.cached_property
  def language_model(self) -> LanguageModel:
    """The frozen LM alone: text in, text out."""
    params = self.params["language_model"]
    return LanguageModel(self.model.config.language_model, params, self.tokenizer, self.mesh)

  @functools.cached_property
  def _encode(self):
    def encode(params, audio, lengths, prompt):
      return self.model.apply({"params": params}, audio, lengths, prompt, method="encode")

    rows = self._rows.sharding
    return jax.jit(encode) if rows is None else jax.jit(encode, out_shardings=(rows, rows))

  @functools.cached_property
  def _ctc(self):
    def decode(params, audio, lengths):
      encoder = make_speech_encoder(self.model.config.speech_encoder)
      encoded = encoder.apply({"params": params}, audio, lengths)
      return greedy_decode(encoded.ctc_logits, encoded.mask, encoded.blank_id)  # pyright: ignore

    return jax.jit(decode)

  def generate(
    self,
    audio: np.ndarray,
    lengths: np.ndarray,
    prompt_tokens: np.ndarray,
    *,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    num_return_sequences: int = 1,
  ) -> GenerationResult:
    """Answers an instruction about speech.

    Args:
      audio: int16 [B, S] at 16 kHz, S <= max_samples.
      lengths: int32 [B], real samples.
      prompt_tokens: int32 [B, P], the instruction with EOS, pad 0.
      max_new_tokens: longest answer in tokens.
      num_beams: 1 is greedy.
      length_penalty: exponent of the length a beam's score is divided by.
      num_return_sequences: R, the best of the beams.

    Returns:
      ids int32 [B, max_new_tokens] and scores fp32 [B]; with R above 1 [B, R, max_new_tokens] and
      [B, R], best first.
    """
    config = GenerationConfig(
      max_new_tokens=max_new_tokens,
      num_beams=num_beams,
      length_penalty=length_penalty,
      num_return_sequences=num_return_sequences,
    )
    t5, params = T5(self.model.config.language_model), self.params["language_model"]
    inputs = (self._rows.spread(x) for x in (audio, lengths, prompt_tokens))
    with self._rows.active():
      memory, mask = self._encode(self.params, *inputs)
      found = generate(t5, params, memory, mask, config)
    return self._rows.collect(found, len(audio))

  @property
  def has_ctc(self) -> bool:
    """Whether the speech encoder has a CTC head and a tokenizer for it."""
    return self.model.config.speech_encoder.vocab_size > 0 and self.ctc_tokenizer is not None

  def ctc_transcribe(self, audio: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Greedy CTC transcripts of the frozen speech encoder alone; audio int16 [B, S], lengths int32 [B]."""
    inputs = (self._rows.spread(x) for x in (audio, lengths))
    with self._rows.active():
      found = self._ctc(self.params["speech_encoder"], *inputs)
    ids, counts = self._rows.collect(found, len(audio))
    return [self.ctc_tokenizer.decode(row[:n].tolist()) for row, n in zip(ids, counts, strict=True)]
