"""The processes of a run, each joined to process 0 by one TCP connection that stays open until the run ends.

It says who is missing at the start, whether all agree, and who is gone. JAX's own coordination service
learns the same later, and answers by aborting the process with a stack trace that names nobody.
Messages are lines of JSON. A killed process's connection is closed by its kernel at once; a host
that has vanished is noticed by TCP's own keep-alives, which go on while Python is busy.
"""

import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from slm_jax.errors import UserError

# Together they bound how long a vanished host goes unnoticed, in seconds.
KEEP_ALIVE_IDLE, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_PROBES = 15, 5, 5
# How long the processes of a run wait for one another where all are alive.
BARRIER_SECONDS = 1800.0
SECONDS_BETWEEN_NOTES = 60.0
_END = "end"


@dataclasses.dataclass(frozen=True)
class Member:
  """One process of the run."""

  index: int
  host: str
  pid: int

  def __str__(self) -> str:
    return f"process {self.index} ({self.host}, pid {self.pid})"


def leave_with(line: str, status: int) -> None:
  """Prints one line and ends this process, whatever its other threads wait for."""
  sys.stdout.flush()
  print(f"slm_jax: error: {line}", file=sys.stderr, flush=True)
  os._exit(status)


class _Line:
  """A connection that carries JSON lines; sending is safe from any thread."""

  def __init__(self, connection: socket.socket):
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
      ("TCP_KEEPIDLE", KEEP_ALIVE_IDLE),
      ("TCP_KEEPINTVL", KEEP_ALIVE_INTERVAL),
      ("TCP_KEEPCNT", KEEP_ALIVE_PROBES),
      ("TCP_USER_TIMEOUT", 1000 * (KEEP_ALIVE_IDLE + KEEP_ALIVE_INTERVAL * KEEP_ALIVE_PROBES)),
    ):
      if hasattr(socket, name):  # Linux has all of them
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self.socket = connection
    self._unread = b""
    self._sending = threading.Lock()

  def send(self, message: dict) -> None:
    """Raises OSError if the other side is gone."""
    with self._sending:
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> list[dict] | None:
    """The messages that have arrived, after waiting for some bytes; None once the other side has closed."""
    try:
      data = self.socket.recv(1 << 16)
    except OSError:
      return None
    if not data:
      return None
    *lines, self._unread = (self._unread + data).split(b"\n")
    return [json.loads(line) for line in lines]

  def close(self) -> None:
    self.socket.close()


class Crew:
  """The processes of a run, as one of them sees it; `gather` must be called by all in the same order."""

  def __init__(
    self,
    members: list[Member],
    index: int,
    lines: dict[int, _Line],
    on_end: Callable[[str, int], None] = leave_with,
  ):
    """Starts to watch.

    Args:
      members: every process, by index.
      index: this one's.
      lines: connections by the other side's index: process 0 has one to each, the others one to 0.
      on_end: called with a line and an exit status when the run cannot go on.
    """
    self.members, self.index = members, index
    self._lines, self._on_end = lines, on_end
    self._said: dict[str, dict[int, Any]] = {}
    self._heard: dict[str, list] = {}
    self._changed = threading.Condition()
    self._rounds = 0
    self._ended = False
    self._watching = threading.Thread(target=self._watch, name="roll_call", daemon=True)
    self._watching.start()

  @property
  def count(self) -> int:
    """How many processes the run has."""
    return len(self.members)

  def gather(self, topic: str, value: Any, *, timeout: float = BARRIER_SECONDS) -> list:
    """Everyone's `value`, by process; waits for all.

    Args:
      topic: what is waited for, in words.
      value: JSON-ready.
      timeout: seconds; those who are waited for are named on the way.

    Raises:
      UserError: some process has not come in `timeout` seconds.
    """
    self._rounds += 1
    key = f"{self._rounds} {topic}"
    if self.index == 0:
      with self._changed:
        self._said.setdefault(key, {})[0] = value
      self._wait(topic, lambda: len(self._said[key]) == self.count, key, timeout)
      said = self._said.pop(key)
      values = [said[i] for i in range(self.count)]
      if topic == _END:
        self._ended = True
      for line in self._lines.values():
        self._try(line, {"heard": key, "values": values})
      return values
    self._try(self._lines[0], {"said": key, "value": value})
    # Process 0 gives up first, and says who was missing.
    self._wait(topic, lambda: key in self._heard, key, timeout + 30.0)
    return self._heard.pop(key)

  def leave(self) -> None:
    """Ends the run for this process once all have come so far."""
    self.gather(_END, None)
    self._ended = True
    for line in self._lines.values():
      line.close()

  def fail(self, text: str, status: int) -> None:
    """Tells the others that this process stops, and why, and ends it with `text` and `status`."""
    told = f"{self.members[self.index]} of {self.count} stopped: {text}"
    self._ended = True
    if self.index == 0:
      self._tell_all(told, status)
    else:
      self._try(self._lines[0], {"failed": told, "status": status})
    self._on_end(text, status)

  def _wait(self, topic: str, done: Callable[[], bool], key: str, timeout: float) -> None:
    began = time.monotonic()
    noted = began
    with self._changed:
      while not done():
        self._changed.wait(1.0)
        now = time.monotonic()
        late = [i for i in range(self.count) if i not in self._said.get(key, {})]
        names = ", ".join(map(str, late)) if self.index == 0 else "others"
        if now - began > timeout:
          raise UserError(
            f"{topic}: waited {timeout:.0f} s for process {names} of {self.count}; they are alive but have not "
            "come so far: look at their logs"
          )
        if now - noted > SECONDS_BETWEEN_NOTES and self.index == 0:
          noted = now
          print(
            f"[slm_jax] {topic}: waiting for process {names} of {self.count}",
            file=sys.stderr,
            flush=True,
          )

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for index, line in self._lines.items():
        selector.register(line.socket, selectors.EVENT_READ, index)
      while not self._ended:
        for key, _ in selector.select(timeout=1.0):
          messages = self._lines[key.data].receive()
          for message in messages or ():
            self._handle(key.data, message)
          if messages is None:
            if self._ended:
              return
            self._lose(key.data)
            selector.unregister(key.fileobj)

  def _handle(self, sender: int, message: dict) -> None:
    with self._changed:
      if "said" in message:
        self._said.setdefault(message["said"], {})[sender] = message["value"]
      elif "heard" in message:
        self._heard[message["heard"]] = message["values"]
        # The others may now close their ends.
        self._ended |= message["heard"].endswith(f" {_END}")
      self._changed.notify_all()
    if "failed" in message:
      self._tell_all(message["failed"], message["status"], but=sender)
      self._end(message["failed"], message["status"])
    elif "stop" in message:
      self._end(message["stop"], message["status"])

  def _lose(self, index: int) -> None:
    line = (
      f"{self.members[index]} of {self.count} is gone without a word (killed, out of memory, or its host is lost), "
      "so this process stops too; start the run again on all hosts, and it goes on from its last checkpoint"
    )
    if self.index == 0:
      self._tell_all(line, 1, but=index)
    self._end(line, 1)

  def _end(self, line: str, status: int) -> None:
    if not self._ended:
      self._ended = True
      self._on_end(line, status)

  def _tell_all(self, line: str, status: int, *, but: int | None = None) -> None:
    for index, connection in self._lines.items():
      if index != but:
        self._try(connection, {"stop": line, "status": status})
    # A connection that closes with something unread takes back what was sent last.
    time.sleep(0.5)

  def _try(self, line: _Line, message: dict) -> None:
    try:
      line.send(message)
    except OSError:
      pass  # the watching thread sees the same and says who it was


def call(
  address: str,
  count: int,
  index: int,
  *,
  timeout: float = 60.0,
  on_end: Callable[[str, int], None] = leave_with,
) -> Crew:
  """Joins the `count` processes of a run; returns when all are there.

  Args:
    address: `host:port` of process 0. The port is free again afterwards, for JAX's own service.
    count: number of processes.
    index: this process's, 0 … count - 1.
    timeout: seconds to wait for the others.
    on_end: as of `Crew`.

  Raises:
    UserError: someone is missing (the message has their indices), came twice, or counts differently.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit():
    raise UserError(f"--coordinator_address={address!r}: expected host:port of process 0")
  me = Member(index, socket.gethostname(), os.getpid())
  if index == 0:
    return _call(int(port), me, count, timeout, on_end)
  return _answer(host.strip("[]"), int(port), me, count, timeout, on_end)


def _listen(port: int) -> socket.socket:
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
  except OSError as error:
    raise UserError(
      f"process 0 cannot listen on port {port}: {error.strerror}; is another run still there? choose another port "
      "in --coordinator_address"
    ) from error


def _call(port: int, me: Member, count: int, timeout: float, on_end) -> Crew:
  """Process 0: listens until everyone has come."""
  deadline = time.monotonic() + timeout
  lines: dict[int, _Line] = {}
  members = {0: me}
  problem = None
  with _listen(port) as server:
    while len(members) < count and problem is None:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        missing = ", ".join(str(i) for i in range(count) if i not in members)
        problem = (
          f"{len(members)} of {count} processes answered the roll call in {timeout:.0f} s; missing: process "
          f"{missing}; start them with the same --coordinator_address, or look at their logs"
        )
        break
      connection.settimeout(5.0)
      line = _Line(connection)
      hello = _one(line)
      if hello is None or "hello" not in hello:
        line.close()  # no process of ours
        continue
      member = Member(**hello["hello"])
      problem = _objection(member, hello["count"], members, count)
      lines[member.index if problem is None else -1] = line
      if problem is None:
        members[member.index] = member
  everyone = [dataclasses.asdict(members[i]) for i in range(count) if i in members]
  for line in lines.values():
    try:
      line.send({"problem": problem} if problem else {"members": everyone})
    except OSError:
      pass
  if problem:
    time.sleep(0.5)  # as in `Crew`: the answer must arrive
    raise UserError(problem)
  return Crew([members[i] for i in range(count)], 0, lines, on_end)


def _objection(member: Member, their_count: int, members: dict, count: int) -> str | None:
  if their_count != count:
    return f"{member} was started with --process_count={their_count}, process 0 with {count}"
  if member.index in members:
    return f"two processes came with --process_index={member.index}: {members[member.index]} and {member}"
  if not 0 <= member.index < count:
    return f"{member} came, but the processes are 0 to {count - 1}"
  return None


def _one(line: _Line) -> dict | None:
  """The next message; None if the other side says nothing sensible."""
  while True:
    try:
      messages = line.receive()
    except ValueError:
      return None
    if messages is None:
      return None
    if messages:
      return messages[0]


def _answer(host: str, port: int, me: Member, count: int, timeout: float, on_end) -> Crew:
  """Every other process: calls process 0 until it answers."""
  deadline = time.monotonic() + timeout
  reason = "no answer"
  while time.monotonic() < deadline:
    try:
      connection = socket.create_connection((host, port), timeout=5.0)
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(0.2)
      continue
    if connection.getsockname() == connection.getpeername():
      # Nobody listened, and the kernel gave this side the very port it called.
      connection.close()
      continue
    line = _Line(connection)
    line.socket.settimeout(timeout + 10.0)  # process 0 waits for the others
    line.send({"hello": dataclasses.asdict(me), "count": count})
    answer = _one(line)
    if answer is None:
      line.close()
      reason = "it closed the connection"
      time.sleep(0.2)
      continue
    if "problem" in answer:
      raise UserError(answer["problem"])
    line.socket.settimeout(None)
    return Crew([Member(**m) for m in answer["members"]], me.index, {0: line}, on_end)
  raise UserError(
    f"process {me.index} of {count}: process 0 at {host}:{port} did not answer in {timeout:.0f} s ({reason}); is it "
    "started, and is --coordinator_address its host?"
  )
