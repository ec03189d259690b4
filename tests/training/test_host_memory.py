"""What was freed goes back to the system."""

import ctypes
from pathlib import Path

from slm_jax.training.host_memory import release_freed

MIB = 2**20


def resident() -> int:
  """Bytes of this process in memory."""
  return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_freed_memory_goes_back():
  libc = ctypes.CDLL(None)
  libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  # Too small for mappings of their own, and in use at the end of the heap: glibc keeps what lies before.
  blocks = [libc.malloc(MIB // 16) for _ in range(16 * 64)]
  for block in blocks:
    ctypes.memset(block, 1, MIB // 16)
  for block in blocks[:-1]:
    libc.free(block)
  before = resident()
  release_freed()
  assert before - resident() > 32 * MIB
  libc.free(blocks[-1])
