"""Where caches live: compilations and SeqIO's offline caches."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
  """`$SLM_JAX_CACHE_DIR`, or ~/.cache/slm_jax."""
  return Path(os.environ.get("SLM_JAX_CACHE_DIR", "~/.cache/slm_jax")).expanduser()
