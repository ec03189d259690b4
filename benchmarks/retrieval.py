"""Retrieval of names in the mini world: recall of the trained retriever, and what its lists do for an SLM.

  python -m benchmarks.retrieval --model_dir=runs/mini_retriever
  python -m benchmarks.retrieval --model_dir=runs/mini_retriever --slm=runs/mini

Utterances, names and voices are held out. Each list has the names of all utterances and, up to its size,
other names of the same kind. Beside the retriever: the CTC head's text, each name ranked by its edit
distance to the nearest word.

With --slm, a run's adapter transcribes every utterance with no list, with the top K, with the names that
were said among as many others, and with the whole list where --whole_list says so. Prints JSON.
"""

import argparse
import json
import time

import numpy as np
from rapidfuzz.distance import Levenshtein

from slm_jax import interop
from slm_jax.cli.run_folder import load_retriever_run, load_run
from slm_jax.data import registry
from slm_jax.data.eval_examples import EvalExamples
from slm_jax.data.mini_world.biasing import with_names
from slm_jax.data.mini_world.names import sample_name
from slm_jax.data.mini_world.splits import Draws
from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.ctc_transcriber import CtcTranscriber
from slm_jax.evaluation.generation import (
  GenerationSettings,
  hypothesise,
  padded_length,
  prompt_ids,
)
from slm_jax.evaluation.normalisers import normalise_basic
from slm_jax.evaluation.scores import score, score_of
from slm_jax.evaluation.statistics import Statistics, mean
from slm_jax.retrieval import EntityRetriever, load_retriever
from slm_jax.training.recipes import resolve_path
from slm_jax.training.restore import load_speech_language_model

MAX_SAMPLES = 64_000
INSTRUCTION = "Transcribe this."


def other_names(taken: list[str], count: int, seed: int) -> list[str]:
  """`taken` and held-out names that are not among them, `count` in all."""
  draws, found = Draws(seed, 0, "heldout", "retrieval"), dict.fromkeys(taken)
  while len(found) < count:
    found[sample_name(draws, "heldout")] = None
  return list(found)


def recall(spoken: list[list[str]], rankings: list[list[list[str]]], k: int) -> dict[str, float]:
  """Percent of the names said that are among the first k, over several lists; a 95 % interval by bootstrap
  over utterances."""
  hits = np.mean(
    [
      [sum(name in best[:k] for name in said) for said, best in zip(spoken, ranked, strict=True)]
      for ranked in rankings
    ],
    axis=0,
  )
  rows = np.stack([hits, [len(said) for said in spoken]], axis=1)
  found = score_of(Statistics(metric="recall", rows=rows, value=mean), resampling=Resampling())
  assert found.interval is not None
  low, high = found.interval
  return {"recall": round(found.value, 1), "low": round(low, 1), "high": round(high, 1)}


def by_edit_distance(texts: list[str], names: list[str]) -> list[list[str]]:
  """The names in order of their normalised edit distance to the nearest word of each text."""
  ranked = []
  for text in texts:
    words = normalise_basic(text).split() or [""]
    distances = [
      min(Levenshtein.normalized_distance(name.lower(), word) for word in words) for name in names
    ]
    ranked.append([names[i] for i in np.argsort(distances, kind="stable")])
  return ranked


def speed(retriever: EntityRetriever, recordings: list[np.ndarray], size: int, k: int) -> dict:
  """Times with a list of `size` random words, after one call that compiles."""
  rng = np.random.default_rng(0)
  words = {"".join(rng.choice(list("abdefgiklmnoprstu"), 9)) for _ in range(size)}
  began = time.perf_counter()
  index = retriever.index(sorted(words))
  indexed = time.perf_counter() - began
  retriever.retrieve(recordings[:1], index, k)
  began = time.perf_counter()
  retriever.retrieve(recordings, index, k)
  each = (time.perf_counter() - began) / len(recordings)
  return {
    "size": len(words),
    "index_seconds": round(indexed, 2),
    "ms_per_utterance": round(1000 * each, 1),
  }


def transcribe(model, examples: list, lists: list[list[str]]) -> dict:
  """Word error rates of an SLM whose instruction ends in each utterance's list."""
  instructions = [with_names(INSTRUCTION, names) for names in lists]
  length = padded_length(len(prompt_ids(model.tokenizer, text)) for text in instructions)
  requests = ((e.audio, text) for e, text in zip(examples, instructions, strict=True))
  settings = GenerationSettings(batch_size=16, max_new_tokens=28, num_beams=4)
  texts = [h.text for h in hypothesise(model, requests, settings, prompt_length=length)]
  references, names = [e.transcript for e in examples], [e.names for e in examples]
  return {
    metric: round(score(metric, references, texts, names=names).value, 2)
    for metric in ("wer", "b_wer", "u_wer")
  }


def with_slm(model, examples: list, names: list[str], systems: dict, flags) -> dict:
  """Every condition's scores; `systems`: name → ranked lists."""
  rng = np.random.default_rng(flags.seed)

  def among_others(said: list[str], k: int) -> list[str]:
    others = [name for name in rng.permutation(names).tolist() if name not in said]
    return rng.permutation((said + others)[:k]).tolist()

  found = {"no list": transcribe(model, examples, [[]] * len(examples))}
  for k in (5, 10, 20):
    oracle = [among_others(list(example.names), k) for example in examples]
    found[f"said among {k}"] = transcribe(model, examples, oracle)
    for system, ranked in systems.items():
      shuffled = [rng.permutation(best[:k]).tolist() for best in ranked]
      found[f"{system}, top {k}"] = transcribe(model, examples, shuffled)
  if flags.whole_list:
    found["whole list"] = transcribe(model, examples, [names] * len(examples))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--model_dir", required=True, help="a retriever's run")
  parser.add_argument("--slm", help="an adapter's run")
  parser.add_argument("--task", default="mini_names")
  parser.add_argument("--module", default="tasks.mini_names")
  parser.add_argument("--list_size", type=int, default=1000)
  parser.add_argument("--lists", type=int, default=3, help="whose recall is averaged")
  parser.add_argument("--large_list", type=int, default=200_000, help="only timed; 0 is none")
  parser.add_argument("--num_examples", type=int)
  parser.add_argument("--whole_list", action="store_true")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  registry.set_directories(None, "")
  registry.find(flags.task, flags.module)
  registry.fill_caches(flags.task, num_processes=2)
  examples = list(
    EvalExamples(flags.task, max_samples=MAX_SAMPLES, max_examples=flags.num_examples)
  )
  recordings, spoken = [e.audio for e in examples], [list(e.names) for e in examples]
  said = [name for names in spoken for name in names]

  def run_of(folder: str) -> argparse.Namespace:
    return argparse.Namespace(model_dir=folder, gin_file=[], gin_search_paths="")

  _, recipe = load_retriever_run(run_of(flags.model_dir), [])
  retriever, step = load_retriever(recipe, flags.model_dir, max_samples=MAX_SAMPLES)
  assert isinstance(recipe.speech_encoder, str)
  encoder = interop.load_speech_encoder(resolve_path(recipe.speech_encoder))
  ctc = [h.text for h in CtcTranscriber(encoder, MAX_SAMPLES).hypothesise(recordings, 16)]
  every: dict = {"retriever": [], "ctc text": []}
  for seed in range(flags.seed, flags.seed + flags.lists):
    names = other_names(said, flags.list_size, seed)
    found = retriever.retrieve(recordings, retriever.index(names), 20)
    every["retriever"].append([[name for name, _ in best] for best in found])
    every["ctc text"].append(by_edit_distance(ctc, names))
  answer = {
    "retriever": flags.model_dir,
    "step": step,
    "utterances": len(examples),
    "names said": len(said),
    "list_size": flags.list_size,
    "lists": flags.lists,
    "recall": {
      system: {f"@{k}": recall(spoken, rankings, k) for k in (1, 2, 5, 10, 20)}
      for system, rankings in every.items()
    },
    "speed": [
      speed(retriever, recordings[:64], size, 20)
      for size in (flags.list_size, flags.large_list)
      if size
    ],
  }
  if flags.slm:
    _, adapter = load_run(run_of(flags.slm), [])
    slm, answer["slm_step"] = load_speech_language_model(
      adapter, flags.slm, step=None, max_samples=MAX_SAMPLES
    )
    names = other_names(said, flags.list_size, flags.seed)
    systems = {system: rankings[0] for system, rankings in every.items()}
    answer["slm"] = with_slm(slm, examples, names, systems, flags)
  print(json.dumps(answer, indent=2, ensure_ascii=False))


if __name__ == "__main__":
  main()
