"""Runs before JAX starts: eight virtual CPU devices, and compilations cached between runs."""

import os
import tempfile
from pathlib import Path

# The virtual devices of a CPU share a few threads, each of which waits inside a collective. Run in the order of the
# program, all devices come to the same one; run concurrently, they may wait in different ones until XLA aborts.
# Most of the tests' time is LLVM's, on programs that run once: it need not optimise them.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
  " --xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"
  " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CACHE = Path(
  os.environ.get("SLM_JAX_TEST_CACHE", Path(tempfile.gettempdir()) / "slm_jax_test_cache")
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import sentencepiece  # noqa: E402
from flax import linen as nn  # noqa: E402

from slm_jax.interop.hf_t5 import save_language_model  # noqa: E402
from slm_jax.interop.speech_encoder_folder import save_speech_encoder  # noqa: E402
from slm_jax.models.conformer import ConformerConfig  # noqa: E402
from slm_jax.models.speech_encoders.usm import USMEncoder  # noqa: E402
from slm_jax.models.t5 import T5, T5Config  # noqa: E402

assert jax.device_count() == 8, f"tests need 8 virtual devices, got {jax.device_count()}"


# Files of minutes, the longest first: one that began late would keep a single worker busy after all others have ended.
LONGEST = (
  "test_end_to_end.py",
  "launch/test_preflight.py",
  "training/test_loop.py",
  "training/test_processes.py",
  "training/test_retriever_run.py",
  "training/test_frame_cache.py",
  "data/test_batches.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Path:
  """A SentencePiece model of 64 pieces over a few letters: pad 0, EOS 1, unknown 2."""
  folder = tmp_path_factory.mktemp("tokenizer")
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abdeiklmnorstu"), 4)) for _ in range(200)]
  (folder / "text.txt").write_text("\n".join(" ".join(rng.choice(words, 6)) for _ in range(300)))
  sentencepiece.SentencePieceTrainer.Train(
    input=str(folder / "text.txt"),
    model_prefix=str(folder / "spiece"),
    vocab_size=64,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return folder / "spiece.model"


TINY_ENCODER = ConformerConfig(
  num_layers=2, model_dim=16, num_heads=2, subsampling_channels=(4, 4), vocab_size=64
)
TINY_LM = T5Config(
  vocab_size=64,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=2,
  num_decoder_layers=2,
)


def _random_params(module, *inputs) -> dict:
  # In one program: operation by operation, each shape of each operation would be compiled.
  return nn.unbox(jax.jit(module.init)(jax.random.key(0), *inputs)["params"])


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory, tiny_tokenizer) -> dict[str, str]:
  """Folders of a random speech encoder and a random LM, in the formats that real ones have."""
  folder = tmp_path_factory.mktemp("bases")
  audio = jnp.zeros((1, 4000), jnp.int16)
  encoder = _random_params(USMEncoder(TINY_ENCODER), audio, jnp.array([4000]))
  tokens = jnp.ones((1, 4), jnp.int32)
  lm = _random_params(T5(TINY_LM), tokens, tokens > 0, tokens)
  save_speech_encoder(folder / "speech_encoder", TINY_ENCODER, encoder, tiny_tokenizer)
  save_language_model(folder / "language_model", TINY_LM, lm, tiny_tokenizer)
  return {name: str(folder / name) for name in ("speech_encoder", "language_model")}
