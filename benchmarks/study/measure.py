"""Every text that one adapter of the study gives, into files; those that are there are kept.

  python -m benchmarks.study.measure --model_dir=runs/study/seed0 --output=runs/study/seed0/texts --systems=slm,shuffled

Systems are those of `slm_jax eval`. In ctc, oracle and cascade no adapter takes part.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.study import conditions
from slm_jax import config
from slm_jax.data import registry
from slm_jax.data.eval_examples import EvalExamples, SpeechExample
from slm_jax.evaluation.generation import GenerationSettings, padded_length, prompt_ids
from slm_jax.evaluation.runner import SYSTEMS, derangement
from slm_jax.evaluation.system_answers import SystemAnswers
from slm_jax.evaluation.writer import write_json_lines
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.training.restore import load_speech_language_model

MAX_SAMPLES = 64_000
SETTINGS = GenerationSettings(batch_size=32, max_new_tokens=28)
# Short instructions share one compiled shape; lists of names have one for each 64 tokens.
PROMPT_LENGTH, LIST_LENGTH = 16, 64


def main() -> None:
  """Measures one adapter."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--model_dir", type=Path, required=True)
  parser.add_argument("--output", type=Path, required=True)
  parser.add_argument("--systems", default="slm")
  parser.add_argument("--short", action="store_true", help="the short list of conditions")
  flags = parser.parse_args()
  flags.output.mkdir(parents=True, exist_ok=True)
  systems = [system for system in SYSTEMS if system in flags.systems.split(",")]
  wanted = [
    (name, examples, missing)
    for name, examples in all_conditions(conditions.SHORT if flags.short else None)
    if (
      missing := [
        s for s in systems if conditions.is_asked(s, name) and not _path(flags, s, name).is_file()
      ]
    )
  ]
  if not wanted:
    return
  config.load([str(flags.model_dir / "config.gin")], [], [])
  recipe = config.build("train").model
  model, _ = load_speech_language_model(recipe, flags.model_dir, step=None, max_samples=MAX_SAMPLES)
  for name, examples, missing in wanted:
    for system, texts in answers(model, name, examples, missing).items():
      write(_path(flags, system, name), examples, texts)
      print(f"[study] {flags.output}: {system}, {name}", flush=True)


def all_conditions(only: Sequence[str] | None) -> Iterator[tuple[str, list[SpeechExample]]]:
  """(condition, its examples), of all conditions or `only` some."""
  registry.set_directories(None, "")
  for name, task in conditions.TASKS.items():
    if only is None or name in only:
      yield name, _examples(task)
  spoken = _examples(conditions.NAMES_TASK)
  for name, count, listed in conditions.names_conditions():
    if only is None or name in only:
      yield name, conditions.with_list(spoken, count, listed)


def _examples(task: str) -> list[SpeechExample]:
  registry.find(task, conditions.MODULE)
  registry.fill_caches(task, num_processes=2)
  return list(EvalExamples(task, "validation", max_samples=MAX_SAMPLES))


def answers(
  model: SpeechLanguageModel,
  condition: str,
  examples: Sequence[SpeechExample],
  systems: Sequence[str],
) -> dict[str, list[str]]:
  """System → its texts."""
  longest = max(len(prompt_ids(model.tokenizer, e.instruction)) for e in examples)
  length = PROMPT_LENGTH if longest <= PROMPT_LENGTH else padded_length([longest], LIST_LENGTH)
  found = SystemAnswers(
    model, condition, conditions.kind_of(condition), examples, SETTINGS, length, lambda *_: None
  )
  others = derangement([e.transcript for e in examples], 0)
  for system in systems:
    found.add(system, others)
  return found.texts


def _path(flags: argparse.Namespace, system: str, condition: str) -> Path:
  return flags.output / f"{system}-{condition}.jsonl"


def write(path: Path, examples: Sequence[SpeechExample], texts: Sequence[str]) -> None:
  """One line for each example; the file appears when it is whole."""
  write_json_lines(
    path,
    (
      {
        "id": example.id,
        "instruction": example.instruction,
        "names": list(example.names),
        "target": example.target,
        "prediction": text,
      }
      for example, text in zip(examples, texts, strict=True)
    ),
  )


if __name__ == "__main__":
  main()
