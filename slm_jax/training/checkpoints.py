"""Training checkpoints: `checkpoint_<step>/` with the trained state, the data position and the base's fingerprint.

Written by Orbax into a temporary folder that is renamed when complete, so a kill at any moment leaves the last good
one. Frozen weights are not in it; their fingerprint is, and restoring over another base is refused.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
import orbax.checkpoint.checkpoint_managers as policies
from etils import epath

from slm_jax.errors import UserError
from slm_jax.paths import run_folder
from slm_jax.training.step import TrainState

# What checkpoints are compared by; less is better.
METRIC = "eval_loss"


class Batches(Protocol):
  """An endless iterator of batches whose position can be written and read back.

  Attributes:
    skipped: feature name → examples left out so far because it was too long.
    example_ids: of the last batch's rows that are this process's own.
    facts: what the data are, JSON-ready; the same for all processes of a run.
  """

  def __next__(self) -> dict[str, Any]: ...

  def save(self, directory: str) -> None: ...

  def restore(self, directory: str) -> None: ...

  @property
  def skipped(self) -> dict[str, int]: ...

  @property
  def example_ids(self) -> list[str]: ...

  @property
  def facts(self) -> dict[str, Any]: ...


class DataPositionHandler(ocp.CheckpointHandler):
  """Lets Orbax carry the data iterator's own files, in one folder for all processes."""

  def save(self, directory: epath.Path, args: "SaveDataPosition") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    args.batches.save(str(directory))

  def restore(self, directory: epath.Path, args: "RestoreDataPosition") -> None:
    args.batches.restore(str(directory))


@ocp.args.register_with_handler(DataPositionHandler, for_save=True)
@dataclasses.dataclass
class SaveDataPosition(ocp.args.CheckpointArgs):
  batches: Batches


@ocp.args.register_with_handler(DataPositionHandler, for_restore=True)
@dataclasses.dataclass
class RestoreDataPosition(ocp.args.CheckpointArgs):
  batches: Batches


def _goodness(metrics: Mapping[str, float]) -> float:
  """Greater is better; a loss that is not a number is the worst."""
  loss = metrics[METRIC]
  return -math.inf if math.isnan(loss) else -loss


class Checkpoints:
  """The checkpoints of one MODEL_DIR."""

  def __init__(self, model_dir: str | epath.PathLike, *, keep: int, keep_best: int = 0):
    """Keeps the `keep` newest and the `keep_best` with the least held-out loss."""
    kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
    if keep_best:
      # The last in ascending order are the best.
      kept.append(policies.BestN(get_metric_fn=_goodness, n=keep_best))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept),
      best_fn=(lambda metrics: metrics[METRIC]) if keep_best else None,
      best_mode="min",
      step_prefix="checkpoint",
      create=True,
      enable_async_checkpointing=True,
    )
    self._manager = ocp.CheckpointManager(
      run_folder(model_dir), options=options, item_names=("state", "data", "info")
    )

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: TrainState,
    batches: Batches,
    info: dict,
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts writing; the state is copied to the host first, so training may go on at once.

    `metrics` has `eval_loss` where it was taken.
    """
    self._manager.save(
      step,
      metrics=metrics,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(dataclasses.asdict(_plain(state))),  # pyright: ignore
        data=SaveDataPosition(batches),
        info=ocp.args.JsonSave(info),
      ),
    )

  def restore(
    self, step: int, state: TrainState, batches: Batches | None, info: dict
  ) -> TrainState:
    """Reads checkpoint `step` into the shapes and shardings of `state` and moves `batches` to its position.

    Raises:
      UserError: it was trained over other frozen weights, does not fit the state, or is damaged.
    """
    template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(state).__dict__)
    args = {"state": ocp.args.StandardRestore(template)}
    if batches is not None:
      args["data"] = RestoreDataPosition(batches)  # pyright: ignore[reportArgumentType]
    try:
      check_base(self._manager.directory / f"checkpoint_{step}", info["frozen"])
      restored = self._manager.restore(step, args=ocp.args.Composite(**args))["state"]
    except (ValueError, OSError, KeyError) as error:
      first = str(error).strip().split("\n")[0]
      others = [other for other in self._manager.all_steps() if other != step]
      earlier = (
        f"the run then goes on from checkpoint_{max(others)}" if others else "it is the only one"
      )
      raise UserError(
        f"checkpoint_{step} in {self._manager.directory} does not fit this model or is damaged: {first}; if it is "
        f"damaged, move it away: {earlier}"
      ) from error
    return dataclasses.replace(state, **_typed(restored, state))

  def info(self, step: int) -> dict:
    """What was saved as `info` with checkpoint `step`."""
    return saved_info(self._manager.directory / f"checkpoint_{step}")

  def wait(self) -> None:
    """Blocks until everything that was started is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


@dataclasses.dataclass
class _Plain:
  step: Any
  params: Any
  opt_state: Any
  rng: Any


def _plain(state: TrainState) -> _Plain:
  """Optimiser states are NamedTuples; a flat list of leaves survives any version of optax's classes."""
  return _Plain(
    step=state.step,
    params=state.params,
    opt_state={f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))},
    rng=state.rng,
  )


def _typed(restored: dict, state: TrainState) -> dict:
  leaves = [restored["opt_state"][key] for key in sorted(restored["opt_state"])]
  tree = jax.tree.structure(state.opt_state)
  return {**restored, "opt_state": jax.tree.unflatten(tree, leaves)}


def saved_info(checkpoint: epath.Path) -> dict:
  """What was saved beside the state of a checkpoint's folder."""
  return json.loads((checkpoint / "info" / "metadata").read_text())


def check_base(checkpoint: epath.Path, fingerprints: dict[str, str]) -> None:
  """Raises UserError unless the folder `checkpoint` was trained over frozen parts of these fingerprints."""
  check_fingerprints(str(checkpoint), saved_info(checkpoint)["frozen"], fingerprints)


def check_fingerprints(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
  """Raises UserError, which calls the trained weights `what`, unless both name the same frozen parts."""
  for part in sorted(expected.keys() | found.keys()):
    trained_over, here = expected.get(part), found.get(part)
    if here != trained_over:
      raise UserError(
        f"{what} was trained over another {part}: its fingerprint is {trained_over}, the one loaded now is "
        f"{here}; point the run at the base it was trained on"
      )


def check_run(
  model_dir: epath.Path, described: dict, free: tuple[str, ...], defaults: dict | None = None
) -> None:
  """Refuses to continue a MODEL_DIR that holds checkpoints of another config.

  Args:
    model_dir: the run's folder.
    described: flat `{field: value}` of this run, JSON-ready.
    free: fields that may change when a run is continued.
    defaults: what fields were that the run's version of the program did not have yet.

  The first process writes them down for the next time.
  """
  path = model_dir / "run.json"
  has_checkpoints = model_dir.is_dir() and any(model_dir.glob("checkpoint_*"))
  if path.is_file() and has_checkpoints:
    before = (defaults or {}) | json.loads(path.read_text())
    for name in sorted(set(before) | set(described)):
      if name not in free and before.get(name) != described.get(name):
        raise UserError(
          f"MODEL_DIR={str(model_dir)!r} holds a run with {name}={before.get(name)!r}, this one has "
          f"{described.get(name)!r}; choose another MODEL_DIR or set it back (nothing was overwritten)"
        )
  elif has_checkpoints:
    raise UserError(
      f"MODEL_DIR={str(model_dir)!r} holds checkpoints but no run.json; choose another MODEL_DIR"
    )
  if jax.process_index() != 0:
    return
  try:
    model_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(described, indent=1, sort_keys=True))
    temporary.replace(path)
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f"MODEL_DIR={str(model_dir)!r} cannot be written: {reason}") from error
