"""Every text that one adapter of the study gives, into files; those that are there are kept.

  python -m benchmarks.study.measure --model_dir=runs/study/seed0 --output=runs/study/seed0/texts --systems=slm,shuffled

Systems: `slm`; `shuffled` and `silenced`, with wrong audio and with none; and what no adapter takes part in: `ctc`,
`oracle` (the LM given the correct transcript) and `cascade` (given the CTC head's).
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.study import conditions
from slm_jax import config
from slm_jax.data import registry
from slm_jax.data.batches import EvalExamples, SpeechExample
from slm_jax.evaluation.generation import (
  GenerationSettings,
  answer_texts,
  hypothesise,
  padded_length,
  prompt_ids,
  transcribe_with_ctc,
)
from slm_jax.evaluation.runner import derangement
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.training.restore import load_speech_language_model

MAX_SAMPLES, MAX_NEW_TOKENS, BATCH_SIZE = 64_000, 28, 32
SETTINGS = GenerationSettings(batch_size=BATCH_SIZE, max_new_tokens=MAX_NEW_TOKENS)
# Short instructions share one compiled shape; lists of names have one each.
PROMPT_LENGTH = 16


def main() -> None:
  """Measures one adapter."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--model_dir", type=Path, required=True)
  parser.add_argument("--output", type=Path, required=True)
  parser.add_argument("--systems", default="slm")
  parser.add_argument("--short", action="store_true", help="the short list of conditions")
  flags = parser.parse_args()
  flags.output.mkdir(parents=True, exist_ok=True)
  asked = dict(all_conditions(conditions.SHORT if flags.short else None))
  wanted = [
    (system, name, examples)
    for system in flags.systems.split(",")
    for name, examples in asked.items()
    if _is_asked(system, name) and not _path(flags.output, system, name).is_file()
  ]
  if not wanted:
    return
  config.load([str(flags.model_dir / "config.gin")], [], [])
  recipe = config.build("train").model
  model, _ = load_speech_language_model(recipe, flags.model_dir, step=None, max_samples=MAX_SAMPLES)
  for system, name, examples in wanted:
    write(_path(flags.output, system, name), examples, SYSTEMS[system](model, examples))
    print(f"[study] {flags.output.parent.name}: {system}, {name}", flush=True)


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


def _is_asked(system: str, condition: str) -> bool:
  if system in ("shuffled", "silenced"):
    return condition in conditions.SHUFFLED
  return system != "ctc" or condition in ("asr", "wordings", "names_none")


def _slm(model: SpeechLanguageModel, examples: Sequence[SpeechExample], audio=None) -> list[str]:
  audio = [e.audio for e in examples] if audio is None else audio
  longest = max(len(prompt_ids(model.tokenizer, e.instruction)) for e in examples)
  length = PROMPT_LENGTH if longest <= PROMPT_LENGTH else padded_length([longest], 64)
  requests = zip(audio, (e.instruction for e in examples), strict=True)
  return [h.text for h in hypothesise(model, requests, SETTINGS, prompt_length=length)]


def _shuffled(model: SpeechLanguageModel, examples: Sequence[SpeechExample]) -> list[str]:
  others = derangement([e.transcript for e in examples], 0)
  assert others is not None
  return _slm(model, examples, [examples[i].audio for i in others])


def _silenced(model: SpeechLanguageModel, examples: Sequence[SpeechExample]) -> list[str]:
  return _slm(model, examples, [np.zeros_like(e.audio) for e in examples])


def _ctc(model: SpeechLanguageModel, examples: Sequence[SpeechExample]) -> list[str]:
  return [h.text for h in transcribe_with_ctc(model, (e.audio for e in examples), BATCH_SIZE)]


def _cascade(model: SpeechLanguageModel, examples: Sequence[SpeechExample]) -> list[str]:
  heard = _ctc(model, examples)
  pairs = [(text, e.instruction) for text, e in zip(heard, examples, strict=True)]
  return list(answer_texts(model, pairs, SETTINGS))


def _oracle(model: SpeechLanguageModel, examples: Sequence[SpeechExample]) -> list[str]:
  return list(answer_texts(model, [(e.transcript, e.instruction) for e in examples], SETTINGS))


SYSTEMS: dict[str, Callable[[SpeechLanguageModel, Sequence[SpeechExample]], list[str]]] = {
  "slm": _slm,
  "shuffled": _shuffled,
  "silenced": _silenced,
  "ctc": _ctc,
  "cascade": _cascade,
  "oracle": _oracle,
}


def _path(folder: Path, system: str, condition: str) -> Path:
  return folder / f"{system}-{condition}.jsonl"


def write(path: Path, examples: Sequence[SpeechExample], texts: Sequence[str]) -> None:
  """One line for each example; the file appears when it is whole."""
  partial = path.with_name(path.name + ".partial")
  with partial.open("w", encoding="utf-8") as file:
    for example, text in zip(examples, texts, strict=True):
      line = {
        "id": example.id,
        "language": example.target_language or example.language,
        "instruction": example.instruction,
        "transcript": example.transcript,
        "names": list(example.names),
        "target": example.target,
        "prediction": text,
      }
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
  partial.replace(path)


if __name__ == "__main__":
  main()
