"""A tiny speech and text world: real sentences, tones for voices, caches in a temporary folder."""

import numpy as np
import pytest
import seqio

VOCABULARY_PATH = "slm_jax/assets/mini/spiece.model"
RATE = 8_000


class ToneSynthesizer:
  """Speaks in tones, 10 ms a letter, the same for the same arguments."""

  def synthesize(self, text, language, voice, seed):
    time = np.arange(len(text) * RATE // 100) / RATE
    pitch = 200 + 50 * ord(text[0]) % 700 + seed % 100
    return (8_000 * np.sin(2 * np.pi * pitch * time)).astype(np.int16), RATE


@pytest.fixture(scope="session")
def vocabulary(request):
  return seqio.SentencePieceVocabulary(str(request.config.rootpath / VOCABULARY_PATH))


@pytest.fixture
def registry(monkeypatch, tmp_path):
  """SeqIO's registries and cache folders, given back as they were; yields the cache folder."""
  for kind in (seqio.TaskRegistry, seqio.MixtureRegistry):
    monkeypatch.setattr(kind, "_REGISTRY", dict(kind._REGISTRY))
  before = list(seqio.utils.get_global_cache_dirs())
  seqio.set_global_cache_dirs([str(tmp_path / "cache")])
  yield tmp_path / "cache"
  seqio.set_global_cache_dirs(before)
