"""Mistakes in `slm_jax serve` are told before a model is loaded."""

import socket

import pytest

from slm_jax.cli.main import main


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "give --bundle=NAME=FOLDER"),
    (["--bundle=a=/gone"], "/gone is not a bundle"),
    (["--bundle=a=x", "--bundle=a=y"], "a name that no other bundle has"),
    (["--bundle=a=x", "--port=70000"], "cannot listen at --host=127.0.0.1 --port=70000"),
    (["--bundle=a=x", "--max_queue=0"], "--max_queue=0 must be above 0"),
    (["--bundle=a=x", "--audio_seconds=5", "--audio_seconds=2"], "audio_seconds=(5.0, 2.0)"),
  ],
)
def test_mistakes_are_one_line(capsys, flags, message):
  assert main(["serve", "--port=0", *flags]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_an_address_that_is_taken_is_named(capsys):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    assert main(["serve", "--bundle=a=x", f"--port={port}"]) == 2
  assert f"--port={port}: [Errno 98]" in capsys.readouterr().err
