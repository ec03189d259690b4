"""The adapters that the study trains: each row answers one question by changing one thing."""

import dataclasses

EXPERIMENT = "experiments/mini_study.gin"
# Without what the CTC head recognised, an adapter has the lexicon to learn: larger steps, and more of them.
PLAIN = {
  "AdapterConfig.ctc_embeddings": False,
  "OptimizerConfig.learning_rate": 1e-3,
  "TRAIN_STEPS": 600,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRun:
  """One adapter.

  Attributes:
    name: of its folder.
    group: rows of one table.
    label: what is different.
    bindings: gin bindings over the experiment's.
    gin_files: included after the experiment.
    whole: measured on everything, or on the short list of conditions.
    frames: trained from cached frames, which those of one encoder, reduction and LM share.
  """

  name: str
  group: str
  label: str
  bindings: dict = dataclasses.field(default_factory=dict)
  gin_files: tuple[str, ...] = ()
  whole: bool = False
  frames: bool = True


def _mixture(name: str) -> dict:
  return {"MIXTURE_OR_TASK_NAME": name}


def _heard(group: str, name: str, label: str, **bindings) -> StudyRun:
  """Over utterances or frames that no other run shares."""
  return StudyRun(name=name, group=group, label=label, bindings=bindings, frames=False)


def _reduction(
  name: str, label: str, kind: str, factor: int = 4, max_frames: float = 0.5
) -> StudyRun:
  settings = {"kind": kind, "factor": factor, "max_frames": max_frames}
  bindings = {f"LengthReductionConfig.{field}": value for field, value in settings.items()}
  return _heard("reduction", name, label, **PLAIN, **bindings)


def _seed(seed: int) -> StudyRun:
  bindings = {"RANDOM_SEED": seed}
  return StudyRun(
    name=f"seed{seed}", group="seeds", label=f"seed {seed}", bindings=bindings, whole=True
  )


def _depth(depth: int) -> StudyRun:
  bindings = {"AdapterConfig.num_layers": depth}
  return StudyRun(name=f"depth{depth}", group="depth", label=f"{depth} layers", bindings=bindings)


RUNS = (
  *map(_seed, range(3)),
  _heard("probe", "deaf", "audio of other sentences", **_mixture("study_deaf_slm")),
  *map(_depth, (0, 1, 4)),
  *(
    _heard("data", f"data{n}", f"{n} utterances", **_mixture(f"study_{n}_slm"))
    for n in (92, 460, 1840)
  ),
  _heard("wordings", "one_wording", "one instruction a task", **_mixture("study_one_slm")),
  StudyRun(
    name="text_first",
    group="order",
    label="instruction, then speech",
    bindings={"AdapterRecipe.speech_first": False},
  ),
  StudyRun(
    name="lora", group="lora", label="LoRA of rank 8 on the LM", gin_files=("models/lora.gin",)
  ),
  _reduction("drop4", "every 4th frame", "drop"),
  _reduction("stack4", "4 frames side by side", "stack"),
  _reduction("tokens", "one frame a CTC token", "ctc_tokens", max_frames=0.4),
  _reduction("blank", "frames that are not blank", "ctc_blank"),
  _reduction("mean4", "mean of 4 frames", "mean"),
  _reduction("conv4", "convolution of stride 4", "conv"),
  _reduction("collapse", "mean of each CTC run", "ctc_collapse"),
  _reduction("random4", "a random one of 4 frames", "random_drop"),
  _reduction("stack2", "2 frames side by side", "stack", 2),
  _reduction("stack8", "8 frames side by side", "stack", 8),
)
