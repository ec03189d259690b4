"""Config dataclasses out of what JSON makes of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

# Type of a field → what JSON may hold for it.
_SCALARS: dict[Any, tuple[type, ...]] = {
  bool: (bool,),
  int: (int,),
  float: (int, float),
  str: (str,),
}


def config_from_record(cls: type[Any], record: Mapping[str, Any]) -> Any:
  """A config dataclass from JSON's objects and lists, nested ones included.

  Raises KeyError, TypeError or ValueError where the record does not fit.
  """
  hints, values = get_type_hints(cls), dict(record)
  for name, value in record.items():
    hint = hints.get(name)
    nested = next((k for k in (hint, *get_args(hint)) if dataclasses.is_dataclass(k)), None)
    if isinstance(value, Mapping) and nested is not None:
      values[name] = config_from_record(nested, value)  # pyright: ignore[reportArgumentType]
    elif nested is hint is not None or type(value) not in _SCALARS.get(hint, (type(value),)):
      raise TypeError(f"{name} is {value!r:.50}, expected {getattr(hint, '__name__', hint)}")
    elif isinstance(value, list):
      values[name] = tuple(value)
  return cls(**values)
