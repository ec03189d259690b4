"""What xpk's own parser makes of argument lists: JSON from stdin to stdout, `python xpk_parser.py FOLDER`.

FOLDER holds xpk as the Makefile installs it: by itself, since it pins other versions than ours of
packages that both need. The clients of clouds and clusters, which it imports before it parses and
calls only after that, are stood in for by empty modules. A list that xpk refuses ends this with its message.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from unittest import mock

CLIENTS = (
  "argcomplete",
  "cloud_accelerator_diagnostics",
  "docker",
  "google",
  "kubernetes",
  "ruamel",
  "setuptools_scm",
)


class Client(types.ModuleType):
  """Has whatever is imported from it."""

  def __getattr__(self, name: str) -> mock.MagicMock:
    return mock.MagicMock(name=name)


class Clients(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  def find_spec(self, fullname, path, target=None):
    if fullname.partition(".")[0] not in CLIENTS:
      return None
    return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

  def create_module(self, spec):
    return Client(spec.name)

  def exec_module(self, module):
    pass


def main() -> None:
  sys.path.insert(0, sys.argv[1])
  sys.meta_path.insert(0, Clients())
  # It asks git otherwise.
  os.environ["XPK_VERSION_OVERRIDE"] = "0"
  from xpk.commands.workload import get_restart_exit_codes
  from xpk.core.system_characteristics import get_system_characteristics
  from xpk.parser.core import set_parser

  parser = argparse.ArgumentParser(prog="xpk")
  set_parser(parser)
  answers = []
  for arguments in json.load(sys.stdin):
    parsed = parser.parse_args(arguments)
    answer = vars(parsed) | {"func": parsed.func.__name__}
    if answer["func"] == "workload_create":
      system = get_system_characteristics(parsed)[0]
      answer["topology"], answer["hosts"] = system.topology, system.vms_per_slice
      answer["gke_accelerator"] = system.gke_accelerator
      answer["restarted"] = get_restart_exit_codes(parsed)
    answers.append(answer)
  json.dump(answers, sys.stdout)


if __name__ == "__main__":
  main()
