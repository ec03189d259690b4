"""Two programs that do the same work in turns, so that a noisy machine is noisy for both.

Each is a process of its own that answers task names on stdin with its times; results go to files.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Times = dict[str, dict[str, list[dict[str, float]]]]


def serve(
  tasks: Mapping[str, Callable[[], Mapping[str, np.ndarray] | None]], folder: Path, name: str
):
  """The process of program `name`: does what stdin asks for, until it ends."""
  answers = sys.stdout
  sys.stdout = sys.stderr  # only answers may reach the parent
  print("ready", file=answers, flush=True)
  for line in sys.stdin:
    task = line.strip()
    wall, cpu = time.perf_counter(), time.process_time()
    result = tasks[task]()
    times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if result:
      np.savez(folder / f"{name}-{task}.npz", **result)  # pyright: ignore[reportArgumentType]
    times["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(times), file=answers, flush=True)


def take_turns(commands: Mapping[str, Sequence[str]], tasks: Sequence[str], rounds: int) -> Times:
  """Runs every task `rounds` times in each program, after one that is not counted.

  Args:
    commands: program → command of a process that calls `serve`.

  Returns:
    Task → program → times of each round.
  """
  processes = {}
  for name, command in commands.items():
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
      raise SystemExit(f"the worker {name} did not start")
    processes[name] = process

  def run(name: str, task: str) -> dict[str, float]:
    process = processes[name]
    print(task, file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())

  times: Times = {}
  for task in tasks:
    times[task] = {name: [] for name in processes}
    for name in processes:  # compiles, allocates, warms the caches
      run(name, task)
    for _ in range(rounds):
      for name in processes:
        times[task][name].append(run(name, task))
        time.sleep(0.3)  # idle threads of this one stop spinning
  for process in processes.values():
    process.stdin.close()
    process.wait()
  return times
