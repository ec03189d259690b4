"""What a training run is: the dataclasses that gin binds for `train` and `pretrain`."""

import dataclasses

from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import (
  AdapterRecipe,
  BestRQRecipe,
  LanguageModelRecipe,
  RetrieverRecipe,
  SpeechEncoderRecipe,
)
from slm_jax.training.sharding import MeshConfig

FrozenPartRecipe = LanguageModelRecipe | SpeechEncoderRecipe | BestRQRecipe
Recipe = AdapterRecipe | RetrieverRecipe | FrozenPartRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
  """A SeqIO task or mixture, read in batches."""

  mixture_or_task_name: str
  # Module whose import registers the task, e.g. "tasks.mini".
  mixture_or_task_module: str
  # Feature name -> longest length; audio in samples at 16 kHz, the rest in tokens.
  task_feature_lengths: dict[str, int]
  batch_size: int
  # Declared shapes; a row belongs to the first that holds it, the last is task_feature_lengths. () pads every batch to
  # the longest.
  length_buckets: tuple[dict[str, int], ...] = ()
  # Neighbours in a batch that share a row of the LM, so that less of the LM's work is padding. Above 1 each of
  # length_buckets says, as lm_inputs and lm_targets, how long a row is: speech and instructions, and targets.
  examples_per_lm_row: int = 1
  split: str = "train"
  seed: int = 0
  # Disjoint shares that the rows of a batch come from, in equal numbers. Each process reads those that its rows come
  # from: give at least as many as a run may ever have processes. The batches do not depend on the number of processes.
  num_shards: int = 1
  # Cached tasks are made on first use with this many processes.
  cache_processes: int = 2

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size}: expected at least 1")
    if self.num_shards < 1 or self.batch_size % self.num_shards:
      raise ValueError(
        f"num_shards={self.num_shards}: expected a divisor of batch_size={self.batch_size}"
      )
    share = self.batch_size // self.num_shards
    if self.examples_per_lm_row < 1 or share % self.examples_per_lm_row:
      raise ValueError(
        f"examples_per_lm_row={self.examples_per_lm_row}: expected a divisor of the {share} rows that each share has "
        "in a batch"
      )
    for bucket in self.length_buckets:
      if (self.examples_per_lm_row > 1) != ({"lm_inputs", "lm_targets"} <= set(bucket)):
        raise ValueError(
          f"length_buckets: {bucket}: lm_inputs and lm_targets belong to examples_per_lm_row above 1, which "
          f"needs both of each bucket; it is {self.examples_per_lm_row}"
        )
    if self.examples_per_lm_row > 1 and not self.length_buckets:
      raise ValueError(
        f"examples_per_lm_row={self.examples_per_lm_row} needs length_buckets with lm_inputs and lm_targets"
      )
    if any(length < 1 for length in self.task_feature_lengths.values()):
      raise ValueError(
        f"task_feature_lengths={self.task_feature_lengths}: lengths must be positive"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeDatasetConfig:
  """Noise and random tokens of a run's shapes: no TensorFlow, no data."""

  task_feature_lengths: dict[str, int]
  batch_size: int
  vocab_size: int
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One training run."""

  model_dir: str
  model: Recipe
  train_dataset: DatasetConfig | FakeDatasetConfig
  optimizer: OptimizerConfig
  total_steps: int
  mesh: MeshConfig = MeshConfig()
  num_microbatches: int = 1
  random_seed: int = 0
  log_period: int = 10
  checkpoint_period: int = 200
  keep_checkpoints: int = 2
  # Held-out data, whose loss over `eval_steps` batches is taken at every checkpoint; the `keep_best_checkpoints` with
  # the least are kept beside the newest.
  eval_dataset: DatasetConfig | FakeDatasetConfig | None = None
  eval_steps: int = 10
  keep_best_checkpoints: int = 1
  # Updates that may be left out because loss or gradient was not finite; one more ends the run.
  nonfinite_budget: int = 0
  # Folder that `slm_jax cache` filled with the speech encoder's frames of these data: the encoder's weights are then
  # read and checked at the start, but not kept, and no step runs it. None runs it in every step.
  frame_cache: str | None = None
  # Adapter (or whole-model) checkpoint to start from when MODEL_DIR has none.
  initial_checkpoint_path: str | None = None

  def __post_init__(self):
    for name in (
      "total_steps",
      "num_microbatches",
      "log_period",
      "checkpoint_period",
      "keep_checkpoints",
      "eval_steps",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    for name in ("keep_best_checkpoints", "nonfinite_budget"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
  """A training run of a frozen part, and the folder its final weights are written to."""

  run: TrainConfig
  output_dir: str
  # What the finished model is scored on for its card.
  score_split: str = "validation"
  score_examples: int = 1000

  def __post_init__(self):
    if not isinstance(self.run.model, FrozenPartRecipe):
      raise ValueError(
        f"run.model is {type(self.run.model).__name__}, which trains no frozen part; use slm_jax train"
      )
