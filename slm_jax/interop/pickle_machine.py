"""A pickle machine for data alone: it knows a few opcodes, and no global but those it is handed.

Python's own unpickler imports and calls what the file says, sets attributes on what it built, and sizes
its memo by a number in the file. This one can do none of that: what it cannot name, it refuses.
"""

import dataclasses
import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

# Opcodes that push the value that stands beside them. Integers have at most 255 bytes.
_LITERALS = frozenset(
  (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
  )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """A global that the file may call; `function` gets the tuple of arguments, ValueError refuses it."""

  function: Callable[[tuple], Any]


def load(
  file: io.BytesIO,
  *,
  allowed: Mapping[str, Any],
  persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
  """Reads one pickle and leaves `file` behind it.

  Args:
    file: the bytes, in memory, so that no length in the pickle can ask for more than there are.
    allowed: what stands for a global of the pickle, by dotted name: a `Call`, or an inert value.
    persistent_load: what a persistent id stands for; None refuses them.

  Returns:
    None, bool, int, float, str, tuple, list, dict, OrderedDict, what `persistent_load`, an allowed
    global or a call of it gives. State set on an OrderedDict is left out. Keys are str or int.

  Raises:
    ValueError: the pickle is damaged, or asks for anything else; a global asked for is named.
  """
  machine = _PickleMachine(allowed, persistent_load)
  position = 0
  try:
    for opcode, argument, at in pickletools.genops(file):
      position = at or 0
      machine.step(opcode.name, argument)
  except LookupError as error:
    raise ValueError(f"its pickle is damaged near byte {position}") from error
  return machine.result()


class _PickleMachine:
  def __init__(self, allowed: Mapping[str, Any], persistent_load: Callable[[Any], Any] | None):
    self._allowed, self._persistent_load = allowed, persistent_load
    self._stack: list[Any] = []
    self._below_marks: list[list[Any]] = []
    self._memo: dict[int, Any] = {}

  def result(self) -> Any:
    if len(self._stack) != 1 or self._below_marks:
      raise ValueError("its pickle ends with other than one object")
    return self._stack[0]

  def step(self, opcode: str, argument: Any) -> None:
    """One opcode; LookupError where the stack or the memo lacks what it needs."""
    if opcode in _LITERALS:
      self._stack.append(argument)
    elif opcode in _CONSTANTS:
      self._stack.append(_CONSTANTS[opcode])
    elif opcode in _EMPTY:
      self._stack.append(_EMPTY[opcode]())
    elif not (self._step_in_memory(opcode, argument) or self._step_in_meaning(opcode, argument)):
      raise ValueError(f"its pickle uses the opcode {opcode}, which no state dict needs")

  def _step_in_memory(self, opcode: str, argument: Any) -> bool:
    """Marks, tuples, memo and containers; False for an opcode of another kind."""
    match opcode:
      case "PROTO" | "FRAME" | "STOP":
        pass
      case "MARK":
        self._below_marks.append(self._stack)
        self._stack = []
      case "TUPLE":
        items = self._pop_to_mark()
        self._stack.append(tuple(items))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        items = [self._stack.pop() for _ in range(int(opcode[-1]))]
        self._stack.append(tuple(reversed(items)))
      case "BINPUT" | "LONG_BINPUT":
        self._memo[argument] = self._stack[-1]
      case "MEMOIZE":
        self._memo[len(self._memo)] = self._stack[-1]
      case "BINGET" | "LONG_BINGET":
        self._stack.append(self._memo[argument])
      case "APPEND":
        self._append([self._stack.pop()])
      case "APPENDS":
        self._append(self._pop_to_mark())
      case "SETITEM":
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])
      case "SETITEMS":
        self._set_items(self._pop_to_mark())
      case _:
        return False
    return True

  def _step_in_meaning(self, opcode: str, argument: Any) -> bool:
    """Globals, calls, state and persistent ids; False for an opcode of another kind."""
    match opcode:
      case "GLOBAL":
        self._push_global(argument.replace(" ", ".", 1))
      case "STACK_GLOBAL":
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
          raise ValueError("its pickle asks for a global whose name is no text")
        self._push_global(f"{module}.{name}")
      case "BINPERSID":
        if self._persistent_load is None:
          raise ValueError("its pickle has a persistent id where none belongs")
        self._stack.append(self._persistent_load(self._stack.pop()))
      case "REDUCE":
        arguments, call = self._stack.pop(), self._stack.pop()
        if not isinstance(call, Call) or not isinstance(arguments, tuple):
          raise ValueError(f"its pickle calls a {type(call).__name__}")
        self._stack.append(call.function(arguments))
      case "BUILD":
        self._stack.pop()
        if type(self._stack[-1]) is not OrderedDict:
          raise ValueError(f"its pickle sets state on a {type(self._stack[-1]).__name__}")
      case _:
        return False
    return True

  def _pop_to_mark(self) -> list[Any]:
    items, self._stack = self._stack, self._below_marks.pop()
    return items

  def _push_global(self, name: str) -> None:
    if name not in self._allowed:
      raise ValueError(
        f"it asks for the global {name[:100]!r}, which weights do not need; none of it was run"
      )
    self._stack.append(self._allowed[name])

  def _append(self, items: list[Any]) -> None:
    if type(self._stack[-1]) is not list:
      raise ValueError(f"its pickle appends to a {type(self._stack[-1]).__name__}")
    self._stack[-1].extend(items)

  def _set_items(self, items: list[Any]) -> None:
    if type(self._stack[-1]) not in (dict, OrderedDict):
      raise ValueError(f"its pickle sets items of a {type(self._stack[-1]).__name__}")
    # The hash of nested tuples that share their parts takes exponential time.
    if bad := [key for key in items[::2] if not isinstance(key, str | int)]:
      raise ValueError(f"its pickle has a {type(bad[0]).__name__} as a key, expected text")
    self._stack[-1].update(zip(items[::2], items[1::2], strict=True))
