"""Programs that a launch starts: shown as a shell takes them, run without a shell."""

import dataclasses
import shlex
import subprocess
import sys

from slm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A program with its arguments.

  Attributes:
    args: the program's name first.
    stdin: text for its standard input.
    asks: it may ask something on the terminal; otherwise there is nothing to read.
  """

  args: tuple[str, ...]
  stdin: str | None = None
  asks: bool = False

  def shown(self) -> str:
    """What to type into a shell for the same."""
    line = shlex.join(self.args)
    return line if self.stdin is None else f"{line} <<'END'\n{self.stdin}END"


class Runner:
  """Runs commands, each of which is shown first."""

  def run(self, command: Command) -> int:
    """The exit status; output goes where ours goes."""
    print(f"+ {command.shown()}", file=sys.stderr, flush=True)
    return self._start(command, capture=False).returncode

  def check(self, command: Command) -> None:
    """As `run`; raises UserError unless the exit status is 0."""
    status = self.run(command)
    if status:
      raise UserError(f"{' '.join(command.args[:4])} … failed with status {status}; see above")

  def read(self, command: Command) -> tuple[int, str, str]:
    """Exit status, output and error output; not shown."""
    done = self._start(command, capture=True)
    return done.returncode, done.stdout, done.stderr

  def _start(self, command: Command, *, capture: bool) -> subprocess.CompletedProcess:
    try:
      return subprocess.run(
        list(command.args),
        input=command.stdin,
        stdin=subprocess.DEVNULL if command.stdin is None and not command.asks else None,
        capture_output=capture,
        text=True,
        check=False,
      )
    except FileNotFoundError as error:
      raise UserError(
        f"{command.args[0]} is not installed here; install it, or see the command with --dry_run"
      ) from error
