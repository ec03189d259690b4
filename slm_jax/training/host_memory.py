"""Memory of this process that nobody uses any more."""

import ctypes


def release_freed() -> None:
  """Gives back to the system what was freed; does nothing where the C library is not glibc.

  XLA allocates some hundred MiB in small pieces while it compiles. glibc keeps them after that, for a process that
  goes on with few and large arrays.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
