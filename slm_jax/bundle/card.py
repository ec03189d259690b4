"""The card of a bundle: README.md, as model hubs show it."""

from collections.abc import Sequence

import yaml

from slm_jax.bundle.manifest import Manifest
from slm_jax.training import parameters

_TEXT = """---
{front}---

# A speech adapter for {language_model}

{count:,} trained parameters between two frozen models, made with slm_jax (arXiv:2310.00230),
step {step}.

| frozen base | where it was found | fingerprint of its weights, stored as |
|---|---|---|
| speech encoder | `{speech_encoder}` | `{encoder_print}`, {encoder_dtype} |
| language model | `{language_model}` | `{lm_print}`, {lm_dtype} |

It works over these weights alone; others are refused.

```python
import slm_jax.bundle

model = slm_jax.bundle.load("this folder", speech_encoder="…", language_model="…")
print(model.generate("audio.wav", {instruction!r}))
```

{scores}## Licence and patents

{licence} The licences of the two bases apply to them and are not changed by this. Patent
applications on adapters between speech encoders and language models exist; no licence to them is given here.
"""


def card(
  manifest: Manifest,
  trained: dict,
  *,
  licence: str,
  scores: dict[str, dict[str, float]],
  base_models: Sequence[str] = (),
) -> str:
  """The text of README.md.

  Args:
    manifest: of the bundle.
    trained: its parameters.
    licence: SPDX name of the adapter's licence, or "" if none was given.
    scores: task → metric → value in percent.
    base_models: the bases' ids on a hub; without, the names of their folders: hubs refuse paths.
  """
  bases = [manifest.speech_encoder.name, manifest.language_model.name]
  front = {
    "library_name": "slm_jax",
    "pipeline_tag": "automatic-speech-recognition",
    "tags": ["speech", "adapter", "slm_jax", "arxiv:2310.00230"],
    "base_model": [*base_models] or [name.rstrip("/").rpartition("/")[2] for name in bases],
  }
  if licence:
    front["license"] = licence.lower()
  if scores:
    front["model-index"] = [_index(scores)]
  return _TEXT.format(
    front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
    count=parameters.count(trained),
    step=manifest.step,
    speech_encoder=bases[0],
    language_model=bases[1],
    encoder_print=manifest.speech_encoder.fingerprint[:16],
    encoder_dtype=manifest.speech_encoder.dtype,
    lm_print=manifest.language_model.fingerprint[:16],
    lm_dtype=manifest.language_model.dtype,
    instruction=manifest.instructions.get("default", "Transcribe the speech."),
    licence=f"The adapter: {licence}." if licence else "The adapter's licence was not stated.",
    scores=_table(scores),
  )


def _index(scores: dict[str, dict[str, float]]) -> dict:
  results = [
    {
      "task": {"type": "automatic-speech-recognition"},
      "dataset": {"name": task, "type": task},
      "metrics": [{"type": metric, "value": value} for metric, value in values.items()],
    }
    for task, values in scores.items()
  ]
  return {"name": "adapter", "results": results}


def _table(scores: dict[str, dict[str, float]]) -> str:
  if not scores:
    return ""
  rows = [
    f"| {task} | {metric} | {value:.1f} |"
    for task, values in scores.items()
    for metric, value in values.items()
  ]
  return "\n".join(
    ["## Scores, percent", "", "| task | metric | |", "|---|---|---|", *rows, "", ""]
  )
