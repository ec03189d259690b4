"""Runs before JAX starts: eight virtual CPU devices, and compilations cached between runs."""

import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
  " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CACHE = Path(os.environ.get("SLM_JAX_TEST_CACHE", Path(tempfile.gettempdir()) / "slm_jax_test_cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402

assert jax.device_count() == 8, f"tests need 8 virtual devices, got {jax.device_count()}"
