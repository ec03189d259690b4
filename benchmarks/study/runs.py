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


def _reduction(kind: str, factor: int = 4, max_frames: float = 0.5, **more) -> dict:
  return {
    **PLAIN,
    "LengthReductionConfig.kind": kind,
    "LengthReductionConfig.factor": factor,
    "LengthReductionConfig.max_frames": max_frames,
    **more,
  }


def _mixture(name: str) -> dict:
  return {"MIXTURE_OR_TASK_NAME": name}


RUNS = (
  *(
    StudyRun(
      name=f"seed{seed}",
      group="seeds",
      label=f"seed {seed}",
      bindings={"RANDOM_SEED": seed},
      whole=True,
    )
    for seed in range(3)
  ),
  StudyRun(
    name="deaf",
    group="probe",
    label="audio of other sentences",
    bindings=_mixture("study_deaf_slm"),
    frames=False,
  ),
  *(
    StudyRun(
      name=f"depth{depth}",
      group="depth",
      label=f"{depth} layers",
      bindings={"AdapterConfig.num_layers": depth},
    )
    for depth in (0, 1, 4)
  ),
  *(
    StudyRun(
      name=f"data{count}",
      group="data",
      label=f"{count} utterances",
      bindings=_mixture(f"study_{count}_slm"),
      frames=False,
    )
    for count in (92, 460, 1840)
  ),
  StudyRun(
    name="one_wording",
    group="wordings",
    label="one instruction a task",
    bindings=_mixture("study_one_slm"),
    frames=False,
  ),
  StudyRun(
    name="text_first",
    group="order",
    label="instruction, then speech",
    bindings={"AdapterRecipe.speech_first": False},
  ),
  StudyRun(
    name="lora", group="lora", label="LoRA of rank 8 on the LM", gin_files=("models/lora.gin",)
  ),
  StudyRun(
    name="drop4",
    group="reduction",
    label="every 4th frame",
    bindings=_reduction("drop"),
    frames=False,
  ),
  StudyRun(
    name="stack4",
    group="reduction",
    label="4 frames side by side",
    bindings=_reduction("stack"),
    frames=False,
  ),
  StudyRun(
    name="tokens",
    group="reduction",
    label="one frame a CTC token",
    bindings=_reduction("ctc_tokens", max_frames=0.4),
    frames=False,
  ),
  StudyRun(
    name="blank",
    group="reduction",
    label="frames that are not blank",
    bindings=_reduction("ctc_blank"),
    frames=False,
  ),
  StudyRun(
    name="mean4",
    group="reduction",
    label="mean of 4 frames",
    bindings=_reduction("mean"),
    frames=False,
  ),
  StudyRun(
    name="conv4",
    group="reduction",
    label="convolution of stride 4",
    bindings=_reduction("conv"),
    frames=False,
  ),
  StudyRun(
    name="collapse",
    group="reduction",
    label="mean of each CTC run",
    bindings=_reduction("ctc_collapse"),
    frames=False,
  ),
  StudyRun(
    name="random4",
    group="reduction",
    label="a random one of 4 frames",
    bindings=_reduction("random_drop"),
    frames=False,
  ),
  StudyRun(
    name="stack2",
    group="reduction",
    label="2 frames side by side",
    bindings=_reduction("stack", 2),
    frames=False,
  ),
  StudyRun(
    name="stack8",
    group="reduction",
    label="8 frames side by side",
    bindings=_reduction("stack", 8),
    frames=False,
  ),
)
