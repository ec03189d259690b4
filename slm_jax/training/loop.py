"""The train loop."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax

from slm_jax.batch import Batch
from slm_jax.errors import UserError
from slm_jax.training import setup, sharding
from slm_jax.training.checkpoints import Batches, Checkpoints, check_run
from slm_jax.training.config import TrainConfig
from slm_jax.training.optimizer import learning_rate, make_optimizer
from slm_jax.training.progress import Progress
from slm_jax.training.scalars import ScalarWriter
from slm_jax.training.step import TrainState, make_train_step

# What may differ when a MODEL_DIR is continued: how long, how often to report, where and on how many devices.
FREE_FIELDS = (
  "total_steps",
  "log_period",
  "checkpoint_period",
  "keep_checkpoints",
  "num_microbatches",
  "mesh.data",
  "mesh.fsdp",
  "mesh.tensor",
  "model_dir",
  "train_dataset.cache_processes",
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
  flat: dict = {}

  def walk(prefix: str, value) -> None:
    if dataclasses.is_dataclass(value):
      flat[f"{prefix}kind"] = type(value).__name__.rsplit(".", 1)[-1]
      for field in dataclasses.fields(value):
        walk_named(f"{prefix}{field.name}", getattr(value, field.name))

  def walk_named(name: str, value) -> None:
    if dataclasses.is_dataclass(value):
      walk(f"{name}.", value)
    else:
      flat[name] = list(value) if isinstance(value, tuple) else value

  walk("", config)
  return flat


def train(config: TrainConfig, batches: Batches, *, run_text: str = "") -> TrainResult:
  """Runs (or continues) training until `config.total_steps` or SIGTERM.

  Args:
    config: the run.
    batches: endless iterator of dicts of NumPy arrays with Batch's field names; this process's rows.
    run_text: the operative gin config, written to MODEL_DIR/config.gin.

  Raises:
    UserError: a mistake in the config, weights, or MODEL_DIR; or a loss that is not finite.
  """
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(config.train_dataset.batch_size, mesh, config.num_microbatches)
  model_dir = Path(config.model_dir)
  built = config.model.build()
  samples = config.train_dataset.task_feature_lengths.get("audio", 0)
  if built.max_samples is not None and samples > built.max_samples:
    raise UserError(
      f'TASK_FEATURE_LENGTHS["audio"]={samples}: the speech encoder takes {built.max_samples} samples; '
      "shorten it"
    )
  check_run(model_dir, describe(config), FREE_FIELDS)

  # The first batch fixes the shapes; its position is taken back by the restore or kept as batch one.
  first = next(batches)
  optimizer = make_optimizer(config.optimizer, config.total_steps)
  prepared = setup.prepare(built, Batch.from_dict(first), optimizer, mesh, config.random_seed)
  setup.write_text(model_dir / "model-info.txt", prepared.info)
  setup.write_text(model_dir / "config.gin", run_text)

  checkpoints = Checkpoints(model_dir, keep=config.keep_checkpoints)
  info = {"frozen": prepared.fingerprints}
  state, start = prepared.state, checkpoints.latest() or 0
  pending_first: dict | None = first
  if start:
    state = checkpoints.restore(start, state, batches, info)
    pending_first = None
  elif config.initial_checkpoint_path:
    state = initial_state(config.initial_checkpoint_path, state, info)

  progress = Progress(config.total_steps, start)
  progress.note(
    f"{prepared.trained_count:,} trained parameters, {prepared.frozen_count:,} frozen "
    f"({100 * prepared.trained_count / (prepared.trained_count + prepared.frozen_count):.2f} % trained)"
  )
  if start >= config.total_steps:
    progress.note(
      f"{model_dir} is already at step {start} of {config.total_steps}: nothing to train"
    )
    checkpoints.close()
    return TrainResult(state, prepared.frozen, start, True)

  step_fn = CompiledSteps(
    make_train_step(built.objective, optimizer, config.num_microbatches),
    state,
    max_shapes=max(1, len(getattr(config.train_dataset, "length_buckets", ()))),
    report=progress.note,
  )
  writer = ScalarWriter(model_dir, start_step=start)
  schedule = learning_rate(config.optimizer, config.total_steps)
  stop = _StopFlag()
  pending: tuple[int, dict] | None = None
  done = start
  try:
    for step in range(start, config.total_steps):
      arrays = pending_first if pending_first is not None else next(batches)
      pending_first = None
      batch = sharding.shard_batch(Batch.from_dict(arrays), mesh)
      state, metrics = step_fn(state, prepared.frozen, batch)
      done = step + 1
      # Last step's numbers: reading this step's would make the host wait for the device.
      if pending is not None:
        _report(pending, config, schedule, writer, progress, batches)
      pending = (done, metrics)
      if done % config.checkpoint_period == 0 or done == config.total_steps or stop.raised:
        # A loss that is not finite must be seen before its weights are written.
        _report(pending, config, schedule, writer, progress, batches)
        pending = None
        # After this step's next(batches), before the following one's: the position is saved too.
        checkpoints.save(done, state, batches, info)
      if stop.raised:
        break
  finally:
    # Also after an error: a checkpoint that is being written is completed.
    checkpoints.wait()
    checkpoints.close()
    writer.close()
    stop.restore()
  setup.write_text(model_dir / "memory.json", json.dumps(step_fn.memory) + "\n")
  finished = done >= config.total_steps
  if not finished:
    progress.note(f"stopped by SIGTERM after step {done}; run the same command again to resume")
  progress.note(f"checkpoints, config.gin, model-info.txt, train.jsonl, tensorboard: {model_dir}")
  return TrainResult(state, prepared.frozen, done, finished)


def _report(pending, config, schedule, writer, progress, batches) -> None:
  step, metrics = pending
  values = {name: float(value) for name, value in metrics.items()}
  if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
    raise UserError(
      f"step {step}: loss {values['loss']} with gradient norm {values['grad_norm']}; the last good checkpoint in "
      f"{config.model_dir} is kept; lower OptimizerConfig.learning_rate or look at the data of this step"
    )
  speed = progress.advance(step, values.get("audio_seconds", 0.0))
  if step % config.log_period == 0 or step == 1 or step == config.total_steps:
    skipped = sum(batches.skipped.values())
    rate = float(schedule(step - 1))
    writer.write(step, values | {"learning_rate": rate, "skipped_examples": skipped} | speed)
    progress.show(step, values, speed, skipped)


class CompiledSteps:
  """The train step compiled ahead of time, once for each declared batch shape.

  Raises UserError when a batch of one shape more than declared arrives: such a run would go on compiling.
  """

  def __init__(
    self, step: Callable, state: TrainState, *, max_shapes: int, report: Callable[[str], None]
  ):
    # A step leaves the state where it was. Left to itself the compiler may choose other shardings or drop the names of
    # mesh axes of size 1; every shape compiled later would then be another program, unknown to the compilation cache.
    shardings = jax.tree.map(lambda x: x.sharding, state)
    self._jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    self._mesh = shardings.step.mesh
    self._compiled: dict[tuple, Callable] = {}
    self._max_shapes = max_shapes
    self._report = report
    self.memory: dict[str, int] = {}

  def __call__(self, state: TrainState, frozen: dict, batch: Batch):
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    if shapes not in self._compiled:
      self._compiled[shapes] = self._compile(shapes, state, frozen, batch)
    return self._compiled[shapes](state, frozen, batch)

  def _compile(self, shapes: tuple, state: TrainState, frozen: dict, batch: Batch) -> Callable:
    if len(self._compiled) == self._max_shapes:
      raise UserError(
        f"a batch of shapes {shapes} came after {self._max_shapes} declared ones; add it to "
        "DatasetConfig.length_buckets"
      )
    began = time.perf_counter()
    with jax.set_mesh(self._mesh):  # the model pins its activations to the mesh
      compiled = self._jitted.lower(state, frozen, batch).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "every XLA back end analyses its memory"
    sizes = {
      "argument_bytes": memory.argument_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes,
    }
    self.memory = {k: max(v, self.memory.get(k, 0)) for k, v in sizes.items()}
    self._report(
      f"train step compiled in {time.perf_counter() - began:.1f} s for batch {shapes[0]}; the compiler's memory per "
      f"device: arguments {sizes['argument_bytes'] / 2**20:.1f} MiB, temporaries "
      f"{sizes['temporary_bytes'] / 2**20:.1f} MiB"
    )
    return compiled


def initial_state(path: str, state: TrainState, info: dict) -> TrainState:
  """Starts a new run from the trained parameters of another run's checkpoint folder `…/checkpoint_<step>`."""
  folder = Path(path)
  step = folder.name.removeprefix("checkpoint_")
  if not folder.is_dir() or not step.isdigit():
    raise UserError(f"INITIAL_CHECKPOINT_PATH={path!r}: expected a folder …/checkpoint_<step>")
  source = Checkpoints(folder.parent, keep=1_000_000)
  restored = source.restore(int(step), state, None, info)
  source.close()
  return dataclasses.replace(state, params=restored.params)


class _StopFlag:
  """Turns SIGTERM (a preemption notice) into "save after this step and leave"."""

  def __init__(self):
    self.raised = False
    self._before = signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, signum, frame) -> None:
    self.raised = True

  def restore(self) -> None:
    signal.signal(signal.SIGTERM, self._before)
