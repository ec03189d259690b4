"""What an evaluation is: the dataclass that gin binds for `eval`."""

import dataclasses

from slm_jax.evaluation.bootstrap import Resampling
from slm_jax.evaluation.normalisers import normaliser_of
from slm_jax.evaluation.runner import SYSTEMS, check_systems
from slm_jax.training.recipes import AdapterRecipe
from slm_jax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Scores of one trained adapter on SeqIO tasks."""

  model_dir: str
  model: AdapterRecipe
  tasks: tuple[str, ...]
  mixture_or_task_module: str
  task_feature_lengths: dict[str, int]
  batch_size: int
  split: str = "validation"
  # Examples scored per task; None scores the whole split.
  num_examples: int | None = None
  # Checkpoint to score: None takes the newest in MODEL_DIR, "best" the one of least held-out loss; several
  # steps, or "all", one after the other.
  step: int | str | tuple[int, ...] | None = None
  num_beams: int = 1
  # Task -> key of `task_scores.KIND_METRICS`; tasks not named here are scored as "answer".
  task_kinds: dict[str, str] = dataclasses.field(default_factory=dict)
  # What answers; see `runner`.
  systems: tuple[str, ...] = SYSTEMS
  # Of references and hypotheses before they are compared; see `normalisers`.
  normaliser: str = "basic-1"
  # Of the scores' 95 % intervals.
  bootstrap_resamples: int = 1_000
  bootstrap_seed: int = 0
  # Tasks whose offline cache is missing are synthesised with this many processes.
  cache_processes: int = 2
  # Over which model and batches are spread where there are several devices.
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    if not self.tasks:
      raise ValueError("tasks=(): expected at least one SeqIO task")
    if self.batch_size < 1 or self.num_beams < 1:
      raise ValueError(
        f"batch_size={self.batch_size}, num_beams={self.num_beams}: expected at least 1"
      )
    if self.step == () or isinstance(self.step, str) and self.step not in ("all", "best"):
      raise ValueError(f'step={self.step!r}: expected a step, several, "all", "best" or None')
    check_systems(self.systems)
    normaliser_of(self.normaliser)
    assert self.resampling  # raises for numbers that are none

  @property
  def resampling(self) -> Resampling:
    return Resampling(resamples=self.bootstrap_resamples, seed=self.bootstrap_seed)
