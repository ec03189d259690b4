"""Which scores a task gets by its kind, and a system's scores of it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from slm_jax.evaluation import behaviour
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.scores import Score, score_of
from slm_jax.evaluation.statistics import Statistics, bleu_tokenizer, statistics_of

# A task of another name is scored as "answer".
TASK_KINDS: Mapping[str, str] = {
  "repeat": "transcription",
  "asr": "transcription",
  "translate": "translation",
  "ast": "translation",
}
# The first metric is the kind's headline.
KIND_METRICS: Mapping[str, tuple[str, ...]] = {
  "answer": ("exact", "f1"),
  "transcription": ("wer", "cer", "exact"),
  "translation": ("bleu", "chrf", "exact"),
  "biasing": ("wer", "b_wer", "u_wer", "exact"),
  "dialogue_state": ("jga",),
}
# Kinds that ask for what was said, which an encoder's CTC head answers too.
SPOKEN_KINDS = ("transcription", "biasing")
# How near the model's answers are to those that the frozen LM gives to the correct transcripts.
AGREEMENT_METRICS = ("exact", "wer", "chrf")
# Of a text and the words to listen for; absent where no example names any.
NAMED_METRICS = frozenset({"b_wer", "u_wer"})


class Scored(Protocol):
  """What is read of an example; `names` are its biasing words."""

  @property
  def instruction(self) -> str: ...
  @property
  def transcript(self) -> str: ...
  @property
  def target(self) -> str: ...
  @property
  def language(self) -> str: ...
  @property
  def target_language(self) -> str: ...
  @property
  def names(self) -> tuple[str, ...]: ...


def metrics_of(kind: str, examples: Sequence[Scored]) -> tuple[str, ...]:
  """The metrics of a kind that these examples can be scored by."""
  named = any(example.names for example in examples)
  return tuple(m for m in KIND_METRICS[kind] if named or m not in NAMED_METRICS)


def metric_statistics(
  metric: str, examples: Sequence[Scored], texts: Sequence[str], normaliser: str
) -> Statistics:
  """A metric's statistics of a system's texts."""
  return statistics_of(
    metric,
    [example.target for example in examples],
    texts,
    normaliser=normaliser,
    names=[example.names for example in examples],
    tokenizer=bleu_tokenizer(target_languages(examples)),
  )


def score_system(
  kind: str,
  examples: Sequence[Scored],
  texts: Sequence[str],
  *,
  normaliser: str,
  resampling: Resampling | None,
) -> dict[str, Score]:
  """Every metric of the kind, per language of the target (the language translated into)."""
  languages = target_languages(examples)
  return {
    metric: score_of(metric_statistics(metric, examples, texts, normaliser), languages, resampling)
    for metric in metrics_of(kind, examples)
  }


def rate_system(
  kind: str,
  system: str,
  examples: Sequence[Scored],
  texts: Sequence[str],
  resampling: Resampling | None,
) -> dict[str, Score]:
  """How a system behaves: `behaviour.RATES`, or insertions on silence of the one that hears nothing."""
  if system == "silenced":
    found = {
      behaviour.INSERTED: behaviour.rate(behaviour.INSERTED, [bool(t.strip()) for t in texts])
    }
  else:
    found = behaviour.rates(
      texts,
      kind=kind,
      targets=[example.target for example in examples],
      transcripts=[example.transcript for example in examples],
      instructions=[example.instruction for example in examples],
      languages=target_languages(examples),
      spoken_languages=[example.language for example in examples],
    )
  return {name: score_of(one, resampling=resampling) for name, one in found.items()}


def agreement(
  texts: Sequence[str],
  oracle: Sequence[str],
  languages: Sequence[str],
  *,
  normaliser: str,
  resampling: Resampling | None,
) -> dict[str, Score]:
  """`AGREEMENT_METRICS` of a system's texts with the oracle's as references."""
  return {
    metric: score_of(
      statistics_of(metric, oracle, texts, normaliser=normaliser), languages, resampling
    )
    for metric in AGREEMENT_METRICS
  }


def target_languages(examples: Sequence[Scored]) -> list[str]:
  """Of each example's target: the one translated into, else the one spoken."""
  return [example.target_language or example.language for example in examples]
