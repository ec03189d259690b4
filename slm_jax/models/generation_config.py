"""What to ask of decoding, and what it answers; part of `slm_jax.models.decoding`."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from slm_jax.models.t5 import DecodingCache

# tokens int32 [B, K], how many new ones precede the one chosen next int32 [], cache ->
# (logits fp32 [B, K, V], their logsumexp fp32 [B, K], cache). What may not be chosen has logit -inf
# yet counts in the logsumexp.
Step = Callable[[jax.Array, jax.Array, DecodingCache], tuple[jax.Array, jax.Array, DecodingCache]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
  """How to choose tokens; names and meanings are those of Hugging Face Transformers.

  `temperature` 0 is greedy; above 0 tokens are drawn, after the `top_k` likeliest were kept (0 =
  all), and of those the likeliest whose probabilities reach `top_p` together. `num_beams` above 1
  is beam search, and sequences compete by log-probability / length**length_penalty.

  `early_stopping` says when the beams of a row are done, K = num_beams: True, as soon as K
  sequences have ended; False, when K have ended and the best open one, divided by its present
  length's penalty, is behind the worst of them; "never", the same with the length at which it
  could score best (the limit if length_penalty is positive).

  `num_return_sequences` above 1 returns the best of the beams, or as many independent draws.
  EOS is not chosen among the first `min_new_tokens`, unless a row's limit is smaller.
  """

  max_new_tokens: int = 64
  min_new_tokens: int = 0
  num_beams: int = 1
  num_return_sequences: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | Literal["never"] = False
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self):
    for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    if not 0 <= self.min_new_tokens <= self.max_new_tokens:
      raise ValueError(
        f"min_new_tokens={self.min_new_tokens}: expected 0 to max_new_tokens={self.max_new_tokens}"
      )
    if self.early_stopping not in (False, True, "never"):
      raise ValueError(
        f"early_stopping={self.early_stopping!r}: expected False, True or the string 'never'"
      )
    if self.temperature < 0:
      raise ValueError(f"temperature={self.temperature}: expected 0 (greedy) or more")
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or more")
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(f"top_p={self.top_p}: expected a value in (0, 1]")
    if self.num_beams > 1 and self.temperature > 0:
      raise ValueError(
        f"num_beams={self.num_beams} with temperature={self.temperature}: beams are not sampled; "
        "set num_beams to 1 or temperature to 0"
      )
    if self.temperature == 0 and self.num_return_sequences > self.num_beams:
      raise ValueError(
        f"num_return_sequences={self.num_return_sequences}: expected at most "
        f"num_beams={self.num_beams}; only sampling (temperature above 0) has more than its beams"
      )


class GenerationResult(NamedTuple):
  """ids int32 [B, T], scores fp32 [B]; with R = num_return_sequences above 1, ids [B, R, T] and
  scores [B, R], best first.

  The ids are the new tokens only: neither the start token nor a given prefix, EOS kept, pad after
  it. A score is the log-probability of these ids, EOS included, divided by their number to the
  power of the length penalty; a prefix counts in neither.
  """

  ids: jax.Array
  scores: jax.Array
