"""Config dataclasses out of what JSON makes of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints


def config_from_record(cls: type[Any], record: Mapping[str, Any]) -> Any:
  """A config dataclass from JSON's objects and lists, nested ones included.

  Raises KeyError, TypeError or ValueError where the record does not fit.
  """
  hints, values = get_type_hints(cls), dict(record)
  for name, value in record.items():
    kinds = (hints.get(name), *get_args(hints.get(name)))
    nested = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if isinstance(value, Mapping) and nested is not None:
      values[name] = config_from_record(nested, value)  # pyright: ignore[reportArgumentType]
    elif isinstance(value, list):
      values[name] = tuple(value)
  return cls(**values)
