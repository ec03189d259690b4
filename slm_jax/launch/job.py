"""A training job for TPUs in the cloud: what every way of starting it has to know."""

import dataclasses
import re

from slm_jax.launch.tpu_slice import TpuSlice

# The job's exit status when SIGTERM (a preemption) stopped it before its last step: 128 + SIGTERM.
STOPPED_STATUS = 143
# Exit status of a user's mistake: starting again would not help.
MISTAKE_STATUS = 2
# From SIGTERM to SIGKILL, in seconds: a step and a save. Where machines are taken away it may be less.
GRACE_SECONDS = 300
# How long the processes wait for one another at the start: hosts fetch the image at different speeds.
ROLL_CALL_SECONDS = 600
# xpk's limit. Names of pods add slice, host and a hash, and end at 63.
_LONGEST_NAME = 40
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/@-]*")


def check_name(name: str) -> None:
  """Raises ValueError unless every service takes `name`: a DNS label (RFC 1035) of at most 40 characters."""
  if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
    raise ValueError(
      f"name {name!r}: expected at most {_LONGEST_NAME} lower-case letters, digits and hyphens, a letter first, "
      "no hyphen last"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One job.

  Attributes:
    name: of the workload, JobSet or queued resource.
    tpu_slice, num_slices: what it runs on.
    image: of the container.
    command: the container's, one argument each.
    env: of the container.
    spot: on capacity that may be taken away.
    max_restarts: how often it is started again after it was stopped or failed, but for `MISTAKE_STATUS`.
  """

  name: str
  tpu_slice: TpuSlice
  num_slices: int = 1
  image: str
  command: tuple[str, ...]
  env: dict[str, str] = dataclasses.field(default_factory=dict)
  spot: bool = False
  max_restarts: int = 3

  def __post_init__(self):
    check_name(self.name)
    if not _IMAGE.fullmatch(self.image):
      raise ValueError(f"image {self.image!r}: expected REGISTRY/PATH:TAG")
    if self.num_slices < 1 or self.max_restarts < 0:
      raise ValueError(
        f"num_slices={self.num_slices}, max_restarts={self.max_restarts}: expected at least 1 and 0"
      )
    for name in self.env:
      if not _VARIABLE.fullmatch(name):
        raise ValueError(f"environment variable {name!r}: expected letters, digits and _")
    for text in (*self.command, *self.env.values()):
      if any(not character.isprintable() for character in text):
        raise ValueError(f"{text!r} has a line break or another control character")
