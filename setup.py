"""Packaging of slm_jax; tool settings are in pyproject.toml, exact versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "slm_jax/__init__.py").read_text())

setup(
  name="slm_jax",
  version=VERSION.group(1) if VERSION else "0",
  description="SLM (arXiv:2310.00230) in JAX: frozen speech encoder + frozen T5-family LM + trained adapter",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  # `gin/` and `tasks/` stay in the checkout: a top-level package named `tasks` is not ours to install.
  packages=find_packages(include=["slm_jax", "slm_jax.*"]),
  package_data={"slm_jax": ["assets/**/*", "data/mini_world/*.tsv"]},
  python_requires=">=3.11",
  install_requires=[
    "array_record>=0.7",
    "etils>=1.7",
    "flax>=0.12",
    "gin-config>=0.5",
    "h5py>=3.10",
    "google-crc32c>=1.5",
    # TensorFlow Datasets imports it where it builds a data set, but does not ask for it.
    "importlib_resources>=6",
    "jax>=0.8",
    "jiwer>=4",
    "librosa>=0.10",
    "matplotlib>=3.8",
    "ml-dtypes>=0.5",
    "msgpack>=1.0.8",
    "numpy>=1.26",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pyarrow>=18",
    "PyYAML>=6",
    "rich>=13",
    "sacrebleu>=2.4",
    "sentencepiece>=0.2",
    "seqio>=0.0.19",
    "soundfile>=0.13",
    "soxr>=0.5",
    "tensorboardX>=2.6",
    "tensorflow>=2.19",
    "tensorflow-datasets>=4.9.7",
    "tensorstore>=0.1.71",
    "tokenizers>=0.21",
    "whisper-normalizer>=0.1.12",
  ],
  extras_require={
    # MP4 audio. The wheel's FFmpeg brings x264 and x265, which are GPL-2; only audio decoding is used.
    "m4a": ["av>=14"],
    # espeak-ng is GPL-3. It only makes speech for the miniature; nothing of the package links to it.
    "mini": ["espeakng-loader>=0.2"],
    # Offline caches made by many workers: seqio_cache_tasks.
    "beam": ["apache-beam>=2.70"],
    # An HTTP server of bundles: slm_jax serve.
    "serve": [
      "prometheus_client>=0.21",
      "python-multipart>=0.0.20",
      "starlette>=0.46",
      "uvicorn>=0.34",
    ],
    # TPU's compiler, for compiling ahead of time on a machine without one.
    "compile": ["libtpu>=0.0.42"],
    "test": [
      "apache-beam>=2.70",
      "av>=14",
      "libtpu>=0.0.42",
      "httpx2>=2",
      "openai>=2",
      "prometheus_client>=0.21",
      "pyright>=1.1.390",
      "pytest>=8",
      "pytest-xdist>=3.6",
      "python-multipart>=0.0.20",
      "ruff>=0.9",
      "safetensors>=0.5",
      "starlette>=0.46",
      "torch>=2.6",
      "transformers>=5.0",
      "uvicorn>=0.34",
    ],
  },
  entry_points={"console_scripts": ["slm_jax=slm_jax.cli.main:console"]},
)
