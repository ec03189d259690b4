"""Scalars of a run to `train.jsonl`, `eval.jsonl` and TensorBoard."""

import json

from etils import epath
from tensorboardX import SummaryWriter, record_writer

TRAIN, EVAL = "train", "eval"


class ScalarWriter:
  """Appends one line a report; a resumed run first drops the lines past the step it resumes from.

  `train.jsonl` has what steps report, `eval.jsonl` held-out losses. Of a run's processes the first
  writes; the others are `silent`. TensorBoard's files in a bucket need google-cloud-storage.
  """

  def __init__(self, model_dir: epath.Path, *, start_step: int, silent: bool = False):
    self._files = {}
    self._board = None
    if silent:
      return
    for name in (TRAIN, EVAL):
      path = model_dir / f"{name}.jsonl"
      kept = [line for line in read_scalars(path) if line["step"] <= start_step]
      temporary = path.with_suffix(".tmp")
      temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
      temporary.replace(path)
      self._files[name] = path.open("a")
    if "://" not in str(model_dir) or record_writer.GCS_ENABLED:
      self._board = SummaryWriter(str(model_dir / "tensorboard"), purge_step=start_step + 1)

  def write(self, step: int, scalars: dict[str, float], *, kind: str = TRAIN) -> None:
    """Writes and flushes one report."""
    if kind not in self._files:
      return
    self._files[kind].write(json.dumps({"step": step, **scalars}) + "\n")
    self._files[kind].flush()
    if self._board is not None:
      for name, value in scalars.items():
        self._board.add_scalar(f"{kind}/{name}", value, step)

  def close(self) -> None:
    for file in self._files.values():
      file.close()
    if self._board is not None:
      self._board.close()


def read_scalars(path: epath.PathLike) -> list[dict]:
  """Reads a `train.jsonl`; a last line cut short by a kill is left out."""
  path = epath.Path(path)
  if not path.is_file():
    return []
  lines = path.read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]
