"""Scalars of a run to `train.jsonl` and TensorBoard."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class ScalarWriter:
  """Appends one line a report; a resumed run first drops the lines past the step it resumes from."""

  def __init__(self, model_dir: Path, *, start_step: int):
    self._path = model_dir / "train.jsonl"
    kept = [line for line in read_scalars(self._path) if line["step"] <= start_step]
    temporary = self._path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.rename(self._path)
    self._file = self._path.open("a")
    self._board = SummaryWriter(str(model_dir / "tensorboard"), purge_step=start_step + 1)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes and flushes one report."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(f"train/{name}", value, step)

  def close(self) -> None:
    self._file.close()
    self._board.close()


def read_scalars(path: Path) -> list[dict]:
  """Reads a `train.jsonl`; a last line cut short by a kill is left out."""
  if not path.is_file():
    return []
  lines = path.read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]
