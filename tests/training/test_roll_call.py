"""Who is there, do they agree, who is gone: over loopback, without JAX."""

import socket
import threading
import time

import pytest

from slm_jax.errors import UserError
from slm_jax.training import roll_call
from slm_jax.training.processes import Processes, ProcessesConfig, _where, differences


@pytest.fixture
def address() -> str:
  with socket.create_server(("", 0)) as server:
    return f"127.0.0.1:{server.getsockname()[1]}"


def call_all(address: str, indices, count: int, timeout: float = 10.0, counts=None):
  """Joins processes of `indices`, as threads; returns what each got (a crew or the error) and its end."""
  results: dict[int, object] = {}
  ends: dict[int, list] = {i: [] for i in range(len(indices))}

  def join(place: int, index: int) -> None:
    try:
      results[place] = roll_call.call(
        address,
        count if counts is None else counts[place],
        index,
        timeout=timeout,
        on_end=lambda line, status: ends[place].append((line, status)),
      )
    except UserError as error:
      results[place] = error

  threads = [threading.Thread(target=join, args=item) for item in enumerate(indices)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return results, ends


def in_parallel(*functions) -> list:
  """Results of functions that wait for one another; an exception is a result."""
  results: list = [None] * len(functions)

  def run(place: int) -> None:
    try:
      results[place] = functions[place]()
    except Exception as error:
      results[place] = error

  threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return results


def wait_for(condition, seconds: float = 10.0) -> None:
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_all_answer_and_gather_everyones_word(address):
  crews, ends = call_all(address, range(3), 3)
  for _ in range(3):
    found = in_parallel(*(lambda i=i: crews[i].gather("numbers", 10 * i) for i in range(3)))
    assert found == [[0, 10, 20]] * 3
  in_parallel(*(crews[i].leave for i in range(3)))
  time.sleep(1.5)  # those who watch would have noticed closed connections by now
  assert not any(ends.values())


def test_the_missing_are_named(address):
  results, _ = call_all(address, [0, 2], 4, timeout=1.0)
  for place in (0, 1):
    assert isinstance(results[place], UserError)
    assert "2 of 4 processes" in str(results[place]) and "missing: process 1, 3" in str(
      results[place]
    )


def test_without_the_first_the_others_say_so(address):
  results, _ = call_all(address, [1], 2, timeout=1.0)
  assert f"process 0 at {address} did not answer in 1 s" in str(results[0])


@pytest.mark.parametrize(
  ("indices", "counts", "said"),
  [
    ([0, 1, 1], [3, 3, 3], "two processes came with --process_index=1"),
    ([0, 1], [3, 2], "started with --process_count=2, process 0 with 3"),
  ],
)
def test_processes_that_cannot_belong_together_are_refused(address, indices, counts, said):
  results, _ = call_all(address, indices, 3, timeout=5.0, counts=counts)
  assert all(isinstance(result, UserError) for result in results.values())
  assert any(said in str(result) for result in results.values())


def test_strangers_on_the_port_are_ignored(address):
  host, port = address.split(":")

  def stranger():
    for _ in range(50):
      try:
        with socket.create_connection((host, int(port)), timeout=1) as connection:
          connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
          return
      except OSError:
        time.sleep(0.05)

  thread = threading.Thread(target=stranger)
  thread.start()
  results, _ = call_all(address, [0, 1], 2)
  thread.join()
  assert [result.count for result in results.values()] == [2, 2]
  in_parallel(*(result.leave for result in results.values()))


@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_process_ends_the_others_with_its_name(address, lost):
  crews, ends = call_all(address, range(3), 3)
  crews[lost]._ended = True  # a killed process says nothing, and its kernel closes what it had open
  for line in crews[lost]._lines.values():
    line.socket.shutdown(socket.SHUT_RDWR)
  others = [i for i in range(3) if i != lost]
  wait_for(lambda: all(ends[i] for i in others))
  for i in others:
    ((line, status),) = ends[i]
    assert status != 0 and f"process {lost} (" in line and "is gone without a word" in line


def test_one_that_fails_tells_the_others_why(address):
  crews, ends = call_all(address, range(3), 3)
  crews[1].fail("no space left on device", 2)
  wait_for(lambda: all(ends.values()))
  assert ends[1] == [("no space left on device", 2)]
  for i in (0, 2):
    ((line, status),) = ends[i]
    assert line.startswith("process 1 (") and "stopped: no space left on device" in line
    assert status == 2


def test_a_barrier_that_someone_does_not_reach_names_him(address):
  crews, _ = call_all(address, range(3), 3)
  first, second = in_parallel(
    lambda: crews[0].gather("step 7", None, timeout=1.0),
    lambda: crews[1].gather("step 7", None, timeout=-29.0),  # the first waits 30 s less
  )
  assert "step 7: waited 1 s for process 2 of 3" in str(first)
  assert isinstance(second, UserError)


def test_processes_that_differ_are_told_in_what(address):
  crews, _ = call_all(address, range(3), 3)
  facts = [{"random_seed": 0, "code": "a"}, {"random_seed": 0, "code": "a"}]
  facts.append({"random_seed": 7, "code": "a"})
  results = in_parallel(
    *(lambda i=i: Processes(crews[i]).check_agreement(facts[i]) for i in range(3))
  )
  for result in results:
    assert isinstance(result, UserError)
    assert "process 2 (" in str(result) and "has random_seed=7, the others 0" in str(result)
    assert "code" not in str(result)
  same = in_parallel(*(lambda i=i: Processes(crews[i]).check_agreement(facts[0]) for i in range(3)))
  assert same == [None] * 3


def test_of_two_camps_the_firsts_counts():
  found = differences([{"a": "1"}, {"a": "2"}], ["process 0", "process 1"])
  assert found == ["process 1 has a=2, the others 1"]


def test_a_cluster_that_jax_knows_needs_no_flags(monkeypatch):
  assert _where(ProcessesConfig()) == (None, None, None, None)
  monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
  monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
  monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
  address, count, index, _ = _where(ProcessesConfig())
  assert address.startswith("10.96.0.1:") and (count, index) == (4, 2)
  given = ProcessesConfig(coordinator_address="h:1", process_count=2, process_index=0)
  assert _where(given)[:3] == ("h:1", 2, 0)


def test_flags_go_together():
  with pytest.raises(ValueError, match="go together"):
    ProcessesConfig(coordinator_address="localhost:1")
  with pytest.raises(ValueError, match="--process_index=2: expected 0 to 1"):
    ProcessesConfig(coordinator_address="localhost:1", process_count=2, process_index=2)
