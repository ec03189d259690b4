"""The shipped vocabulary, and SeqIO registries with caches in a temporary folder."""

import pytest
import seqio

VOCABULARY_PATH = "slm_jax/assets/mini/spiece.model"


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
