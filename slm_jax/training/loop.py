"""The train loop."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.paths import run_folder
from slm_jax.training import setup, sharding
from slm_jax.training.checkpoints import Batches, Checkpoints, check_base, check_run
from slm_jax.training.compiled_steps import CompiledSteps
from slm_jax.training.config import TrainConfig
from slm_jax.training.frame_cache import CachedFrameBatches, open_frame_cache, without_encoder
from slm_jax.training.frozen_frames import frame_count
from slm_jax.training.held_out import HeldOutLoss
from slm_jax.training.objectives import SLMObjective
from slm_jax.training.optimizer import learning_rate, make_optimizer
from slm_jax.training.preemption import StopRequest
from slm_jax.training.processes import ALONE, Processes, code_facts
from slm_jax.training.progress import Padding, Progress
from slm_jax.training.recipes import Built
from slm_jax.training.restore import PREFIX, restore_trained
from slm_jax.training.scalars import EVAL, ScalarWriter
from slm_jax.training.step import TrainState, make_train_step
from slm_jax.training.step_reports import FinishedStep, StepReports

# What may differ when a MODEL_DIR is continued: how long, how often to report, where and on how many devices.
FREE_FIELDS = (
  "total_steps",
  "log_period",
  "checkpoint_period",
  "keep_checkpoints",
  "keep_best_checkpoints",
  "nonfinite_budget",
  "num_microbatches",
  "mesh.data",
  "mesh.fsdp",
  "mesh.tensor",
  "model_dir",
  "train_dataset.cache_processes",
  "frame_cache",
)


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a finished (or politely interrupted) run leaves behind in memory."""

  state: TrainState
  frozen: dict
  step: int
  finished: bool


def describe(config) -> dict:
  """A config dataclass as flat `{"optimizer.learning_rate": 0.001, …}`, JSON-ready."""
  return {name: value for name, (value, _) in _flat("", config).items()}


def defaults(config) -> dict:
  """The fields of `describe` that have a default, with that instead of their value."""
  return {
    name: default for name, (_, default) in _flat("", config).items() if default is not _NO_DEFAULT
  }


_NO_DEFAULT = object()


def _flat(prefix: str, config) -> dict[str, tuple]:
  """Field → (value, default) of a dataclass and of those inside it."""
  kind = type(config).__name__.rsplit(".", 1)[-1]
  flat: dict[str, tuple] = {f"{prefix}kind": (kind, _NO_DEFAULT)}
  for field in dataclasses.fields(config):
    value, name = getattr(config, field.name), f"{prefix}{field.name}"
    if dataclasses.is_dataclass(value):
      flat |= _flat(f"{name}.", value)
    else:
      known = field.default is not dataclasses.MISSING
      flat[name] = (_json_ready(value), _json_ready(field.default) if known else _NO_DEFAULT)
  return flat


def _json_ready(value):
  return list(value) if isinstance(value, tuple) else value


def train(
  config: TrainConfig,
  batches: Batches,
  *,
  held_out: Batches | None = None,
  run_text: str = "",
  processes: Processes = ALONE,
) -> TrainResult:
  """Runs (or continues) training until `config.total_steps` or SIGTERM.

  Args:
    config: the run.
    batches: endless iterator of dicts of NumPy arrays with Batch's field names; this process's rows,
      as of `sharding.process_rows`.
    held_out: the same of `config.eval_dataset`.
    run_text: the operative gin config, written to MODEL_DIR/config.gin.
    processes: of the run.

  Raises:
    UserError: a mistake in the config, weights, or MODEL_DIR; processes that differ in one of them;
      or a loss that is not finite.
  """
  run = _Run(config, batches, held_out, run_text, processes)
  try:
    return run.to_the_end()
  finally:
    run.close()


class _Run:
  """One call of `train`."""

  def __init__(self, config, batches, held_out, run_text, processes: Processes):
    self._config, self._processes = config, processes
    self._mesh = sharding.make_mesh(config.mesh)
    self._batch_size = config.train_dataset.batch_size
    together = getattr(config.train_dataset, "examples_per_lm_row", 1)
    sharding.check_batch_size(self._batch_size, self._mesh, config.num_microbatches, together)
    self._model_dir = run_folder(config.model_dir)
    # Before weights are read, which may take long.
    facts = describe(config) | code_facts() | batches.facts
    processes.check_agreement(facts)
    built, bases = config.model.build(), {}
    _check_audio(built, config)
    if config.frame_cache is not None:
      cache = open_frame_cache(config.frame_cache, config.model, built, self._mesh)
      processes.check_agreement({f"utterances in {cache.folder}": len(cache.store)})
      bases["speech_encoder"] = cache.encoder_fingerprint
      batches = CachedFrameBatches(batches, cache, built)
      held_out = held_out and CachedFrameBatches(held_out, cache, built)
      built = without_encoder(built)
    self._batches = batches
    check_run(self._model_dir, describe(config), FREE_FIELDS, defaults(config))

    # The first batch fixes the shapes; its position is taken back by the restore or kept as batch one.
    first = next(batches)
    self._first: dict | None = first
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    example = _whole(first, self._batch_size)
    prepared = setup.prepare(
      built,
      example,
      optimizer,
      self._mesh,
      config.random_seed,
      state_memory=config.optimizer.state_memory,
    )
    setup.write_text(self._model_dir / "model-info.txt", prepared.info)
    setup.write_text(self._model_dir / "config.gin", run_text)
    self._frozen = prepared.frozen
    keep_best = config.keep_best_checkpoints if held_out is not None else 0
    self._checkpoints = Checkpoints(
      self._model_dir, keep=config.keep_checkpoints, keep_best=keep_best
    )
    self._start = self._checkpoints.latest() or 0
    found = {f"MODEL_DIR={config.model_dir}, newest checkpoint": self._start}
    bases |= prepared.fingerprints
    processes.check_agreement(found | {f"weights of the {part}": bases[part] for part in bases})
    self._info: dict[str, Any] = {"frozen": bases}
    self._state, skipped_steps = prepared.state, 0
    if self._start:
      self._state = self._checkpoints.restore(self._start, self._state, batches, self._info)
      skipped_steps = self._checkpoints.info(self._start).get("skipped_steps", 0)
      self._first = None
    elif config.initial_checkpoint_path:
      self._state = initial_state(config.initial_checkpoint_path, self._state, bases)

    self._progress = Progress(config.total_steps, self._start, quiet=processes.index != 0)
    trained, frozen = prepared.trained_count, prepared.frozen_count
    self._progress.note(
      f"{trained:,} trained parameters, {frozen:,} frozen ({100 * trained / (trained + frozen):.2f} % trained)"
    )
    self._writer = ScalarWriter(
      self._model_dir, start_step=self._start, silent=processes.index != 0
    )
    self._steps = CompiledSteps(
      make_train_step(built.objective, optimizer, config.num_microbatches),
      self._state,
      max_shapes=max(1, len(getattr(config.train_dataset, "length_buckets", ()))),
      report=self._progress.note,
    )
    self._reports = StepReports(
      self._model_dir,
      total_steps=config.total_steps,
      log_period=config.log_period,
      nonfinite_budget=config.nonfinite_budget,
      schedule=learning_rate(config.optimizer, config.total_steps),
      writer=self._writer,
      progress=self._progress,
      processes=processes,
      last_checkpoint=self._checkpoints.latest,
      skipped_steps=skipped_steps,
    )
    self._held_out = None
    if held_out is not None:
      self._held_out = HeldOutLoss(
        built.objective,
        held_out,
        num_batches=config.eval_steps,
        batch_size=config.eval_dataset.batch_size,
        mesh=self._mesh,
      )
    self._padding = Padding(_speech_positions(built))
    self._stop = StopRequest(processes)

  def to_the_end(self) -> TrainResult:
    """All steps that are left, or those until SIGTERM."""
    total, done = self._config.total_steps, self._start
    if done >= total:
      self._progress.note(
        f"{self._model_dir} is already at step {done} of {total}: nothing to train"
      )
      return TrainResult(self._state, self._frozen, done, True)
    pending: FinishedStep | None = None
    stopping = False
    while done < total and not stopping:
      pending_before, pending = pending, self._step(done + 1)
      done += 1
      # Last step's numbers: reading this step's would make the host wait for the device.
      if pending_before is not None:
        self._reports.report(pending_before)
      stopping = self._stop.agreed(done)
      if done % self._config.checkpoint_period == 0 or done == total or stopping:
        # A loss that is not finite must be seen before its weights are written.
        self._reports.report(pending)
        pending = None
        self._save(done)
    self._checkpoints.wait()
    setup.write_text(self._model_dir / "memory.json", json.dumps(self._steps.memory) + "\n")
    if done < total:
      self._progress.note(
        f"stopped by SIGTERM after step {done}; run the same command again to resume"
      )
    self._progress.note(
      f"checkpoints, config.gin, model-info.txt, train.jsonl, tensorboard: {self._model_dir}"
    )
    return TrainResult(self._state, self._frozen, done, done >= total)

  def _step(self, step: int) -> FinishedStep:
    arrays = self._first if self._first is not None else next(self._batches)
    self._first = None
    batch = sharding.shard_batch(Batch.from_dict(arrays), self._mesh, self._batch_size)
    self._state, metrics = self._steps(self._state, self._frozen, batch)
    return FinishedStep(
      step=step,
      metrics=metrics,
      example_ids=list(self._batches.example_ids),
      skipped_examples=sum(self._batches.skipped.values()),
      padding=self._padding.count(arrays),
    )

  def _save(self, step: int) -> None:
    """After this step's next(batches), before the following one's: the position is saved too."""
    metrics = None
    if self._held_out is not None:
      metrics = self._held_out(self._state, self._frozen)
      self._writer.write(step, metrics, kind=EVAL)
      shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
      self._progress.note(f"step {step}/{self._config.total_steps}, {shown}")
    info = self._info | {"skipped_steps": self._reports.skipped_steps}
    self._checkpoints.save(step, self._state, self._batches, info, metrics)

  def close(self) -> None:
    """Also after an error: a checkpoint that is being written is completed."""
    self._checkpoints.wait()
    self._checkpoints.close()
    self._writer.close()
    self._stop.restore()


def _check_audio(built: Built, config: TrainConfig) -> None:
  samples = config.train_dataset.task_feature_lengths.get("audio", 0)
  if built.max_samples is not None and samples > built.max_samples:
    raise UserError(
      f'TASK_FEATURE_LENGTHS["audio"]={samples}: the speech encoder takes {built.max_samples} samples; '
      "shorten it"
    )


def _speech_positions(built: Built) -> Callable[[int], int]:
  """Samples → positions of the LM's encoder, 0 where no speech goes into an LM."""
  objective = built.objective
  if not isinstance(objective, SLMObjective):
    return lambda samples: 0
  return lambda samples: frame_count(objective.model, samples) if samples else 0


def _whole(arrays: dict, batch_size: int) -> Batch:
  """A batch of all processes' rows, of which only shapes and types are used."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), Batch.from_dict(arrays)
  )


def initial_state(path: str, state: TrainState, bases: dict[str, str]) -> TrainState:
  """Starts a new run from the trained parameters of another run's checkpoint folder `…/checkpoint_<step>`.

  Nothing else is taken over, so that the other run's optimiser and length do not matter.

  Args:
    path: of the folder.
    state: the new run's, at its start.
    bases: fingerprints of the frozen parts.

  Raises:
    UserError: no such folder, another base, or parameters of other names or shapes.
  """
  folder = run_folder(path)
  named = folder.name.startswith(PREFIX) and folder.name.removeprefix(PREFIX).isdigit()
  if not named or not (folder / "info").is_dir() or not (folder / "state").is_dir():
    raise UserError(
      f"INITIAL_CHECKPOINT_PATH={path!r}: expected a folder …/{PREFIX}<step> that a run has written"
    )
  check_base(folder, bases)
  return dataclasses.replace(state, params=restore_trained(folder, state.params))
