"""Where a score comes from: model, data, code and settings, as plain JSON values."""

import collections
import dataclasses
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import slm_jax
from slm_jax.evaluation.system_answers import SpeechExample
from slm_jax.training import parameters
from slm_jax.training.processes import code_facts

_MOST_PROMPTS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
  """What all scores of one evaluation share.

  Attributes:
    model: "source" (run or bundle), "step", and the fingerprints of its parts.
    code: versions, digest of the package's files, commit of the checkout if it is one.
    data: task → its data's version.
    normaliser: id.
  """

  model: dict[str, Any]
  code: dict[str, str]
  data: dict[str, dict[str, Any]]
  normaliser: str


def code_version() -> dict[str, str]:
  """As `code_facts`, and the commit of the checkout."""
  found = dict(code_facts())
  folder = Path(slm_jax.__file__).parents[1]
  if (folder / ".git").exists():
    try:
      asked = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
      )
      found["commit"] = asked.stdout.strip()
    except (OSError, subprocess.SubprocessError):
      pass  # no git here: the digest of the files still tells the version
  return found


def model_version(params: dict, source: str, step: int) -> dict[str, Any]:
  """The fingerprint of each part of a model; with several processes all must call."""
  parts = {f"{part} (fingerprint)": parameters.fingerprint({part: params[part]}) for part in params}
  return {"source": source, "step": step, **dict(sorted(parts.items()))}


def examples_digest(examples: Sequence[SpeechExample]) -> str:
  """Of everything that answers and scores of these examples depend on, in order."""
  digest = hashlib.sha256()
  for example in examples:
    for text in (example.id, example.instruction, example.transcript, example.target):
      digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(np.ascontiguousarray(example.audio).tobytes() + b"\0")
  return digest.hexdigest()


def prompts(instructions: Sequence[str]) -> dict[str, Any]:
  """The wordings asked with: how many there are, a digest of all, and the most frequent with their counts."""
  counts = collections.Counter(instructions)
  digest = hashlib.sha256("\0".join(sorted(counts)).encode("utf-8", "surrogatepass")).hexdigest()
  return {
    "count": len(counts),
    "sha256": digest,
    "texts": dict(counts.most_common(_MOST_PROMPTS)),
  }
