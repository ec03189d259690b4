"""What a speech encoder hears by itself: texts from its CTC head, without an adapter or an LM."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from slm_jax.evaluation.generation import Hypothesis, audio_batch, by_chunks
from slm_jax.models.ctc import greedy_decode
from slm_jax.models.ctc_beam_search import ctc_beam_search
from slm_jax.models.speech_encoder_model import SpeechEncoderModel

# Batches are as long as the limit, or that by a power of two up to this: few shapes to compile, and
# short recordings do not cost what the longest would.
_LARGEST_SHARE = 16


class CtcTranscriber:
  """An encoder with a CTC head and a tokenizer."""

  def __init__(self, encoder: SpeechEncoderModel, max_samples: int, num_beams: int = 1):
    """Raises ValueError for an encoder without a head or a tokenizer, or with a lower limit.

    Args:
      encoder: what hears.
      max_samples: longest audio of one call, in samples at 16 kHz.
      num_beams: K of a prefix beam search; 1 takes the most probable class of each frame.
    """
    limit = encoder.config.max_samples
    if not encoder.config.vocab_size or encoder.tokenizer is None:
      raise ValueError("the encoder has no CTC head, or no tokenizer for it")
    if num_beams < 1 or (limit is not None and max_samples > limit):
      raise ValueError(f"{num_beams=}, {max_samples=}: expected at least 1, and at most {limit}")
    self.encoder, self.max_samples, self.num_beams = encoder, max_samples, num_beams

  @property
  def tokenizer(self) -> Any:
    return self.encoder.tokenizer

  def transcribe(self, audio: np.ndarray, lengths: np.ndarray) -> list[tuple[str, float]]:
    """audio int16 [B, S], lengths int32 [B] -> text and log-probability, NaN without a beam."""
    out = self.encoder(audio, lengths)
    assert out.ctc_logits is not None
    if self.num_beams == 1:
      ids, counts = greedy_decode(out.ctc_logits, out.mask, out.blank_id)
      log_probs = jnp.full(len(ids), math.nan)
    else:
      beams = ctc_beam_search(
        out.ctc_logits, out.mask, num_beams=self.num_beams, blank_id=out.blank_id
      )
      ids, counts, log_probs = beams.ids[:, 0], beams.lengths[:, 0], beams.log_probs[:, 0]
    ids, counts, log_probs = (np.asarray(x) for x in (ids, counts, log_probs))
    return [
      (self.tokenizer.decode(row[:n].tolist()), float(score))
      for row, n, score in zip(ids, counts, log_probs, strict=True)
    ]

  def hypothesise(
    self,
    recordings: Iterable[np.ndarray],
    batch_size: int,
    on_samples: Callable[[int], None] | None = None,
  ) -> Iterator[Hypothesis]:
    """Texts of recordings int16 [S], in order; long ones are cut at pauses.

    `on_samples` is called after each batch with the number of samples it held.
    """

    def run(chunks: list[tuple[np.ndarray, str]]) -> list[tuple[str, float]]:
      samples = [chunk for chunk, _ in chunks]
      size = self._batch_samples(max(map(len, samples)))
      return self.transcribe(*audio_batch(samples, size))

    requests = ((recording, "") for recording in recordings)
    return by_chunks(requests, run, self.max_samples, batch_size, on_samples)

  def _batch_samples(self, longest: int) -> int:
    share = _LARGEST_SHARE
    while share > 1 and longest > self.max_samples // share:
      share //= 2
    return self.max_samples // share
